"""A running test of the residuals' squares, for deviations that one row hides: chunk by chunk, valid at every moment.

The squares of a chunk's J whitened residuals of an honest row add up to χ of mean J, E exp(λ·χ) = (1 - 2λ)^(-J/2). So with
``L = exp(λ·χ)·(1 - 2λ)^(J/2)``, and weights ω_ν = 1/(ν(ν + 1)), which sum to 1, for a deviation that begins at row ν,

    S_ν = (S_{ν-1} + ω_ν)·L_ν

plus the weights that are left is a martingale that starts at 1. An honest server makes it reach 1/α with probability α at
most, over all rows together, however many they are (Ville's inequality).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veil.kernels.interface import Kernels, SignVectors
from veil.kernels.row_test import TILTS, RowChunks, RowTest

F64 = NDArray[np.float64]

FALSE_ALARMS = 1e-9
"""The probability that an honest server is ever accused by the running test, over all sessions."""

_TILTS = np.array(TILTS)


class RunningTest:
    """The sums S of some chunks; ``freedom`` [chunks] is J of each. Sums and rows are its state."""

    def __init__(self, freedom: NDArray[np.int64], false_alarms: float = FALSE_ALARMS) -> None:
        self._decay = 0.5 * np.log1p(-2.0 * _TILTS)[:, None] * freedom
        self._sums = np.zeros(self._decay.shape)
        self._rows = np.zeros(len(freedom))
        self.limit = math.log(len(_TILTS) * max(len(freedom), 1) / false_alarms)
        self._most = math.exp(self.limit)
        self._freedom = np.ascontiguousarray(freedom, dtype=np.int64)
        self._beside: RowTest | None = None

    @property
    def sums(self) -> F64:
        """S [tilts, chunks], which may be changed until a row is tested beside its residuals."""
        self._settle()
        return self._sums

    @property
    def rows(self) -> F64:
        """ν [chunks]; see `sums`."""
        self._settle()
        return self._rows

    @property
    def reached(self) -> float:
        """The logarithm of the largest sum, which is an alarm beyond ``limit``."""
        return math.log(max(float(self.sums.max(initial=0.0)), 1e-300))

    @property
    def beyond(self) -> int | None:
        """The chunk with the largest sum if that is one that no honest server would have, or None."""
        return self._beyond(self.sums)

    def one_row(self, kernels: Kernels, vectors: Sequence[tuple[SignVectors, int]], whitening: F64, bound: float) -> RowTest:
        """The test of passes of one row, with the sums of this one, where the kernels have their residuals.

        ``vectors`` are those of groups with their bits of a result, in the order of the chunks, whose matrices stand one
        after the other in ``whitening``; ``bound`` is the largest size of a residual.
        """
        factors = np.exp(self._decay)
        own = RowChunks(sizes=self._freedom, whitening=whitening, factors=factors, bound=bound, most=self._most)
        self._beside = kernels.row_test(vectors, own, self._sums, self._rows)
        return self._beside

    def add(self, squares: F64, rows: int, places: slice = slice(None)) -> int | None:
        """Add q [chunks] summed over this many rows; the place of a chunk that no honest server would have, or None."""
        counted = self.rows[places]
        counted += 1.0
        sums, tilted = self.sums[:, places], _TILTS[:, None] * squares
        tilted += self._decay[:, places] if rows == 1 else rows * self._decay[:, places]
        sums += 1.0 / (counted * (counted + 1.0))
        with np.errstate(over="ignore"):  # infinite is an alarm too
            sums *= np.exp(tilted)
        found = self._beyond(sums)
        return None if found is None else found + (places.start or 0)

    def _beyond(self, sums: F64) -> int | None:
        if sums.max(initial=0.0) <= self._most:
            return None
        return int(np.nan_to_num(sums, nan=np.inf).max(axis=0).argmax())

    def _settle(self) -> None:
        if self._beside is not None:
            self._beside.settle()
