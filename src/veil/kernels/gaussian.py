"""The table that rounded Gaussian errors are drawn by: public, as is everything but the words that it is asked with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class GaussianTable:
    """Inversion table of the rounded Gaussian ``round(sigma * g)``, to 64 bits of probability.

    A sample is the least k with ``u < bounds[k]`` for a uniform 64-bit word u, minus ``largest``. ``values`` [2^16] int8 has
    the answer for each value of the word's upper 16 bits, or `UNCLEAR` where the others decide: some 30 of 65,536.
    """

    UNCLEAR = -128

    def __init__(self, sigma: float) -> None:
        if not 0 < sigma <= 12:
            raise ValueError(f"sigma is {sigma}, expected up to 12")
        self.sigma = sigma
        tails: list[int] = []  # P(X > k) in units of 2^-64
        while True:
            tails.append(round(math.erfc((len(tails) + 0.5) / (sigma * math.sqrt(2))) / 2 * 2.0**64))
            if tails[-1] == 0:
                break
        self.largest = len(tails) - 1
        upper = [(1 << 64) - tail for tail in tails[:-1]]
        bounds = [*reversed(tails[:-1]), *upper]
        self.bounds: NDArray[np.uint64] = np.array(bounds, dtype=np.uint64)
        first = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
        low, high = (
            np.searchsorted(self.bounds, words, side="right") for words in (first, first + np.uint64((1 << 48) - 1))
        )
        clear = (low - self.largest).astype(np.int8)
        self.values: NDArray[np.int8] = np.where(low == high, clear, np.int8(self.UNCLEAR)).astype(np.int8)

    def resolve(self, upper: NDArray[np.uint16], lower: NDArray[np.uint64]) -> NDArray[np.int8]:
        """The samples [count] of words with these upper 16 bits [count] and, as lower 48, the lower 48 of ``lower``."""
        words = (upper.astype(np.uint64) << np.uint64(48)) | (lower & np.uint64((1 << 48) - 1))
        return (np.searchsorted(self.bounds, words, side="right") - self.largest).astype(np.int8)
