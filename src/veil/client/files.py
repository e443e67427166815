"""Files of a client half that a server offers: streamed to disk, with their length and digest checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from veil.client.connection import Connection
from veil.errors import BundleError, ServerUnreachable
from veil.wire import veil_pb2 as pb

_WAIT_S, _SLOWEST = 60.0, 100_000
"""A file may take a minute, and a second for each so many bytes."""


def fetch_file(connection: Connection, bundle: str, path: str, target: Path, *, size: int, sha256: str) -> None:
    """Write the offered file ``path`` of a bundle to ``target``, whole or not at all.

    ``size`` is in bytes, ``sha256`` hexadecimal. Raises `BundleError` for more bytes or another digest,
    `ServerUnreachable` for fewer bytes.
    """
    partial = target.with_name(target.name + ".partial")
    state, written = hashlib.sha256(), 0
    request = pb.FetchRequest(bundle=bundle, path=path)
    try:
        with partial.open("wb") as file:
            for piece in connection.download("Fetch", request, pb.FetchReply, _WAIT_S + size / _SLOWEST):
                written += len(piece.data)
                if written > size:
                    raise BundleError(f"{path} is longer than the {size} bytes that were announced")
                state.update(piece.data)
                file.write(piece.data)
        if written < size:
            raise ServerUnreachable(f"{path} ended after {written} of {size} bytes; try again")
        if state.hexdigest() != sha256:
            raise BundleError(f"{path} does not match its digest; try again, or distrust the server")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
