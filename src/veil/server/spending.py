"""The one rule by which rows are spent: each row of a batch once for each group, or the same bytes once more."""

from __future__ import annotations

import numpy as np

from veil.errors import RowReused
from veil.kernels.cpu.kept import jitted
from veil.wire.messages import Span


@jitted(nogil=True)
def spend(counts, digests, first, count, digest, again):  # type: ignore[no-untyped-def]
    """Note that a span of a batch's rows came for a group; False, and nothing is noted, where that is not allowed.

    ``counts`` int16 [T + 1] has the rows of each span where it begins, and at T the row behind the last that came;
    ``digests`` uint64 [T] are of the spans' bytes. With ``again`` the same span with the same digest may come once more.
    """
    last = len(digests)
    if first >= counts[last]:
        counts[last] = first + count
        counts[first] = count if again else 0
        digests[first] = digest
        return True
    return again and counts[first] == count and digests[first] == digest


class SpentRows:
    """Which rows of a batch of ``rows`` came for each of some groups."""

    __slots__ = ("counts", "digests")

    def __init__(self, groups: int, rows: int) -> None:
        self.counts = np.zeros((groups, rows + 1), np.int16)
        self.digests = np.zeros((groups, rows), np.uint64)

    def claim(self, group: int, span: Span, digest: int | None) -> None:
        """Note that a span came; the same again is allowed where it has a digest, anything else raises `RowReused`."""
        mark = np.uint64(digest or 0)
        if not spend.py_func(self.counts[group], self.digests[group], span.first, span.count, mark, digest is not None):
            raise RowReused(f"rows from {span.first} of batch {span.batch} were used before, with other bytes")

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.counts.nbytes + self.digests.nbytes
