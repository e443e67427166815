"""The public tables a', fetched by a client half that came without them."""

from __future__ import annotations

from pathlib import Path

from veil.bundle import header_file
from veil.bundle.client_half import TABLES
from veil.bundle.manifest import Manifest
from veil.bundle.terms import Terms
from veil.client.connection import Address, Connection
from veil.client.files import fetch_file
from veil.errors import BundleError
from veil.network.timeouts import Timeouts
from veil.params import Params, packed_bytes

_HEADER_BYTES = 1 << 16


def fetch_tables(path: Path, address: Address, timeouts: Timeouts, terms: Terms) -> None:
    """Fetch ``tables.safetensors`` into the client half at ``path``, if it is not there, and check it against its header.

    Raises `BundleError` if the server does not offer it or sends something else, `ServerUnreachable`, `AccessDenied`.
    """
    if (path / TABLES).exists():
        return
    header, params, _, manifest = header_file.read_client(path, terms, optional=(TABLES,))
    connection = Connection(address, timeouts)
    try:
        served = connection.retrying(connection.describe, timeouts.retries(timeouts.connect_s))
        mine = header_file.half_digest(path)
        offered = [
            (bundle.name, size)
            for bundle in served
            for name, size, _ in bundle.files
            if bundle.digest == mine and name == TABLES
        ]
        if not offered:
            raise BundleError(f"{path} has no {TABLES} and the server does not offer it; pull the whole client half")
        bundle, size = offered[0]
        most = _most_bytes(params, manifest)
        if size > most:
            raise BundleError(f"the server's {TABLES} has {size} bytes, more than the {most} that it can have")
        fetch_file(connection, bundle, TABLES, path / TABLES, size=size, sha256=header["sha256"].get(TABLES, ""))
    finally:
        connection.close()


def _most_bytes(params: Params, manifest: Manifest) -> int:
    bits = params.spec.public_bits
    slots = sum(params.blocks(count) * params.w for count in manifest.segments.values())
    return params.T * packed_bytes(slots, bits) + _HEADER_BYTES
