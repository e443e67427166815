"""Rounded Gaussian errors: the samples of a table, looked up by all cores."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.parallel import parallel
from veil.kernels.gaussian import GaussianTable
from veil.kernels.interface import Words


class CpuErrors:
    """Rounded Gaussians from uniform words; the same samples as `reference_kernels.HostErrors`."""

    def __init__(self, rng: Words, sigma: float) -> None:
        self._rng = rng
        self._table = GaussianTable(sigma)
        groups = self._table.values.reshape(-1, 16)
        same = (groups == groups[:, :1]).all(axis=1)
        self._coarse = np.where(same, groups[:, 0], np.int8(GaussianTable.UNCLEAR)).astype(np.int8)

    def draw(self, *shape: int) -> NDArray[np.int8]:
        """See `interface.Errors`."""
        words = self._rng.words16(int(np.prod(shape)))
        samples, counts = np.empty(words.size, dtype=np.int8), np.zeros(-(-words.size // 65536), dtype=np.int64)
        _look_up(words, self._coarse, self._table.values, GaussianTable.UNCLEAR, samples, counts)
        if counts.any():
            unclear = np.flatnonzero(samples == GaussianTable.UNCLEAR)
            samples[unclear] = self._table.resolve(words[unclear], self._rng.words64(unclear.size))
        return samples.reshape(shape)


@parallel()
def _look_up(words, coarse, table, unclear, out, counts):  # type: ignore[no-untyped-def]
    """Samples of uniform 16-bit words by table, int8; ``coarse`` answers for a word's upper 12 bits where they decide.

    ``counts`` gets how many of each part of 65,536 words need more bits.
    """
    for part in prange(counts.size):
        count = 0
        for j in range(part * 65536, min(words.size, (part + 1) * 65536)):
            v = coarse[words[j] >> np.uint16(4)]
            if v == unclear:
                v = table[words[j]]
                count += v == unclear
            out[j] = v
        counts[part] = count
