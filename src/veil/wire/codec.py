"""Rows on the wire: lengths are checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veil.errors import WireError
from veil.params import packed_bytes
from veil.wire.messages import Span

U8 = NDArray[np.uint8]

MAX_SPANS = 4096
"""Spans of one request: more rows than that go in several."""


def rows_from(data: bytes, rows: int, count: int, bits: int) -> U8:
    """Bytes → [rows, packed bytes of count words]; another length raises `WireError`."""
    row_bytes = packed_bytes(count, bits)
    if len(data) != rows * row_bytes:
        raise WireError(f"{len(data)} bytes for {rows} rows of {count} words, expected {rows * row_bytes}")
    return np.frombuffer(data, dtype=np.uint8).reshape(rows, row_bytes)


def flat_spans(spans: Sequence[Span]) -> list[int]:
    """Spans as the numbers that go over the wire."""
    return [number for span in spans for number in (span.batch, span.first, span.count)]


def spans_from(numbers: Sequence[int]) -> list[Span]:
    """Inverse of `flat_spans`; `WireError` for numbers that are no spans."""
    if len(numbers) % 3 or len(numbers) > 3 * MAX_SPANS:
        raise WireError(f"{len(numbers)} numbers are not up to {MAX_SPANS} spans of rows")
    flat = list(numbers)
    return [Span(*flat[at : at + 3]) for at in range(0, len(flat), 3)]
