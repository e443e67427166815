"""The bound and the running test of a pass of one row, beside its residuals: what is kept, and NumPy's definition.

See `veil.checks.running` for the test, and `veil.checks.rows` for the bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILTS = (0.02, 0.15, 0.4)
"""λ: for deviations that are small, middling and large beside the noise; each has a third of the false alarms."""

POWER = 0.01
"""The exponent whose powers those of `TILTS` are: 2, 15 and 40."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowChunks:
    """Of each chunk of a row through all groups: its number of residuals in ``sizes`` [chunks], the matrices M [size, size]
    that make them independent, one after the other in ``whitening``, and ``factors`` [tilts, chunks], (1 - 2λ)^(size/2).

    ``bound`` is the largest size of a residual, ``most`` the largest sum.
    """

    sizes: I64
    whitening: F64
    factors: F64
    bound: float
    most: float


class RowTest(Protocol):
    """The test of passes of one row: `launch` after each; `passed` says whether the last one did."""

    @property
    def places(self) -> Sequence[Any]:
        """Where `Kernels.decrypt_checked` puts the residuals of a row in each group."""

    @property
    def residuals(self) -> F64:
        """The residuals [Σ sizes] that are there, those of one group after the other; it waits."""

    def ready(self) -> None:
        """Have the sums where a graph's recorded `launch` changes them, before it is replayed."""

    def compute(self) -> None:
        """Have the residuals of what came; nothing waits for it."""

    def launch(self) -> None:
        """`compute`, test the row and add it to the sums; nothing waits for it."""

    def replayed(self) -> None:
        """Know that a recorded `launch` was replayed."""

    def passed(self) -> bool:
        """Whether no residual is beyond the bound, or no number, and no sum beyond its limit; waits until that is known."""

    def forget(self) -> None:
        """Forget what came and was not computed."""

    def settle(self) -> None:
        """Have the sums in the arrays of the host, where others may change them until a row is tested."""


AddRow = Callable[[F64, RowChunks, F64, F64], bool]
"""Adds residuals [Σ sizes] to sums [tilts, chunks] and rows [chunks] of the host; whether all are within their limits."""


class HostRowTest:
    """See `RowTest`; ``counts`` are each group's residuals, which `decrypt_checked` computes at once."""

    def __init__(self, counts: Sequence[int], chunks: RowChunks, sums: F64, rows: F64, add: AddRow) -> None:
        self._residuals = np.zeros((1, sum(counts)))
        ends = itertools.pairwise([0, *itertools.accumulate(counts)])
        self.places: list[F64] = [self._residuals[:, first:last] for first, last in ends]
        self._given = self._residuals[0], chunks, sums, rows
        self._add, self._passed = add, True

    @property
    def residuals(self) -> F64:
        """See `RowTest.residuals`."""
        return self._given[0]

    def ready(self) -> None:
        """See `RowTest.ready`."""

    def compute(self) -> None:
        """See `RowTest.compute`."""

    def launch(self) -> None:
        """See `RowTest.launch`."""
        self._passed = self._add(*self._given)

    def replayed(self) -> None:
        """See `RowTest.replayed`: what stands for a recording here is a call of `launch`."""

    def passed(self) -> bool:
        """See `RowTest.passed`."""
        return self._passed

    def forget(self) -> None:
        """See `RowTest.forget`."""

    def settle(self) -> None:
        """See `RowTest.settle`."""


def add_row(residuals: F64, chunks: RowChunks, sums: F64, rows: F64) -> bool:
    """See `AddRow`; the definition."""
    place = at = 0
    squares = np.zeros(len(chunks.sizes))
    rows += 1.0
    sums += 1.0 / (rows * (rows + 1.0))
    with np.errstate(over="ignore", invalid="ignore"):  # infinite is beyond every limit
        for chunk, size in enumerate(chunks.sizes.tolist()):
            matrix = chunks.whitening[at : at + size * size].reshape(size, size)
            squares[chunk] = np.square(matrix @ residuals[place : place + size]).sum()
            place, at = place + size, at + size * size
        sums *= np.exp(np.array(TILTS)[:, None] * squares) * chunks.factors
    within = np.abs(residuals[:place]) <= chunks.bound
    return bool(within.all()) and bool((sums <= chunks.most).all())
