"""Sizes that both ends agree on: rows in a message, and the largest message of a server's bundles."""

from __future__ import annotations

from typing import Any

import pytest

from veil.bundle.manifest import Group, Layer, Manifest
from veil.params import Params, packed_bytes
from veil.wire.messages import BatchUpload
from veil.wire.methods import SMALL_MESSAGE, TARGET_MESSAGE, largest_message, row_bytes, rows_in_message


def manifest(width: int, rows: int, **bits: Any) -> Manifest:
    return Manifest((Group((Layer("a", "linear", width, rows, 8, False),), "body", **bits),))


@pytest.mark.parametrize(
    ("width", "rows", "larger"), [(1000, 10, packed_bytes(1000, 24)), (10, 1000, packed_bytes(1000, 16))]
)
def test_a_row_is_as_large_as_its_larger_direction(width: int, rows: int, larger: int) -> None:
    assert row_bytes(manifest(width, rows, input_bits=24, result_bits=16), 0) == larger + 10


def test_messages_are_filled_with_whole_rows() -> None:
    small, huge = manifest(768, 768), manifest(64, 4_000_000)
    assert (
        rows_in_message(small, 0) * row_bytes(small, 0)
        <= TARGET_MESSAGE
        < (rows_in_message(small, 0) + 1) * row_bytes(small, 0)
    )
    assert rows_in_message(huge, 0) == 1, "a row larger than a message goes alone"


def test_the_largest_message_has_room_for_a_row_and_for_a_batch() -> None:
    params, huge = Params.insecure_tiny(), manifest(64, 4_000_000)
    assert largest_message([]) == TARGET_MESSAGE + SMALL_MESSAGE
    assert largest_message([(params, manifest(8, 8)), (params, huge)]) == row_bytes(huge, 0) + SMALL_MESSAGE
    assert largest_message([(Params.default(), manifest(8, 8))]) >= Params.default().batch_bytes + BatchUpload.HEADER_BYTES
