"""What both ends of the network transport agree on: names, version and sizes."""

from __future__ import annotations

from collections.abc import Iterable

from veil.bundle.manifest import Manifest
from veil.params import Params, packed_bytes
from veil.wire.messages import BatchUpload

PROTOCOL = 2
"""Version of the messages; both sides must have the same."""

SERVICE = "veil.v2.Veil"
DEFAULT_PORT = 8471

SMALL_MESSAGE = 64 << 10
"""Room for the fields of a message beside its payload."""

TARGET_MESSAGE = 4 << 20
"""Rows are cut into messages of about this size, so that nobody waits long behind one."""

FILE_CHUNK = 256 << 10


def row_bytes(manifest: Manifest, group: int) -> int:
    """Bytes of one row of a group in the larger direction, with where it stands."""
    info = manifest.groups[group]
    return max(packed_bytes(info.width, info.input_bits), packed_bytes(info.rows, info.result_bits)) + 10


def rows_in_message(manifest: Manifest, group: int) -> int:
    """How many rows of a group go into one message."""
    return max(1, TARGET_MESSAGE // row_bytes(manifest, group))


def largest_message(bundles: Iterable[tuple[Params, Manifest]]) -> int:
    """Bytes of the largest message that serving these bundles can need, either way."""
    sizes = [TARGET_MESSAGE]
    for params, manifest in bundles:
        sizes += [params.batch_bytes + BatchUpload.HEADER_BYTES]
        sizes += [row_bytes(manifest, group) for group in range(len(manifest.groups))]
    return max(sizes) + SMALL_MESSAGE
