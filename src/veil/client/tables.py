"""The masks' public tables, fetched by a client half that came without them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from veil.client.connection import Address, Connection
from veil.errors import BundleError, ServerUnreachable
from veil.model import folder
from veil.model.bundle import MASKS
from veil.params import Params, packed_bytes
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.patience import Patience

_FILE_S = 3600.0
_HEADER_BYTES = 1 << 16


def fetch_tables(path: Path, address: Address, patience: Patience) -> None:
    """Fetch ``masks.safetensors`` into the client half at ``path``, if it is not there, and check it against its header.

    Raises `BundleError` if the server does not offer it or sends something else, `ServerUnreachable`, `AccessDenied`.
    """
    if (path / MASKS).exists():
        return
    header = folder.read_header(path, "client", optional=(MASKS,))
    params, seed, manifest = folder.parse_common(header)
    connection = Connection(address, patience)
    try:
        served = connection.retrying(connection.describe, patience.tries(patience.connect_s))
        mine = methods.fingerprint(params, seed, manifest)
        offered = [
            bundle for bundle in served if bundle.fingerprint == mine and MASKS in [name for name, *_ in bundle.files]
        ]
        if not offered:
            raise BundleError(f"{path} has no {MASKS} and the server does not offer it; pull the whole client half")
        _fetch(connection, offered[0].name, path / MASKS, header["sha256"][MASKS], _most_bytes(params, manifest))
    finally:
        connection.close()


def _fetch(connection: Connection, bundle: str, target: Path, digest: str, most: int) -> None:
    partial = target.with_suffix(".partial")
    state, written = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for piece in connection.download("Fetch", pb.FetchRequest(bundle=bundle, path=MASKS), pb.FetchReply, _FILE_S):
                written += len(piece.data)
                if written > most:
                    raise BundleError(f"the server's {MASKS} is longer than the {most} bytes that it can have")
                state.update(piece.data)
                file.write(piece.data)
        if state.hexdigest() != digest:
            raise ServerUnreachable(f"{MASKS} arrived damaged or cut; try again, or distrust the server")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _most_bytes(params: Params, manifest: Any) -> int:
    bits = params.spec.public_mask_bits
    each = sum(packed_bytes(params.blocks(slots) * params.N, bits) for slots in manifest.segments.values())
    return params.masks_per_epoch * each + _HEADER_BYTES
