"""Messages that both sides name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from veil.kernels.interface import Array


class Span(NamedTuple):
    """Rows of one batch, as many as ``count`` from row ``first`` on."""

    batch: int
    first: int
    count: int  # type: ignore[assignment]  # not how often a value is in it


@dataclass(frozen=True, eq=False)
class BatchUpload:
    """One batch as the client sends it: its number in the session, and its packed encryptions [bytes] uint8."""

    number: int
    data: Array

    HEADER_BYTES = 5
    """Bytes that the number takes on the wire."""


@dataclass(frozen=True, eq=False)
class Upload:
    """Batches to prepare for some segments."""

    batches: tuple[BatchUpload, ...]
    segments: tuple[str, ...]


def rows_of(spans: Sequence[Span]) -> int:
    """Rows of some spans together."""
    return spans[0].count if len(spans) == 1 else sum(span.count for span in spans)
