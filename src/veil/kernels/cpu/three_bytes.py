"""Residues of three bytes, split into halves, as hints and public polynomials are kept; see `strips`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.transform import COLUMNS
from veil.kernels.memory import aligned


@dataclass(frozen=True, eq=False)
class ThreeBytes:
    """Residues of strips in halves, [tiles, 2, degree, terms, 16] uint16 and uint8, of ``count`` polynomials in all."""

    low: NDArray[np.uint16]
    high: NDArray[np.uint8]
    count: int

    @property
    def blocks(self) -> int:
        """Blocks, or inner ring elements."""
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.low.nbytes + self.high.nbytes

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """See `interface.Hint`."""
        return {"low": self.low, "high": self.high, "count": np.array([self.count])}


def three_bytes(count: int, degree: int, terms: int) -> ThreeBytes:
    """Room for this many polynomials for each term."""
    shape = (-(-count // COLUMNS), 2, degree, terms, COLUMNS)
    return ThreeBytes(aligned(shape, np.uint16), aligned(shape, np.uint8), count)
