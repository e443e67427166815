"""The bound and the running test of a pass of one row, in one kernel: what NumPy does in thirty calls costs as much as a
group's check.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted
from veil.kernels.row_test import POWER, RowChunks

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def add_row(residuals: F64, chunks: RowChunks, sums: F64, rows: F64) -> bool:
    """See `veil.kernels.row_test.AddRow`."""
    return add(residuals, chunks.whitening, chunks.sizes, chunks.factors, chunks.bound, chunks.most, sums, rows)


@jitted(nogil=True, error_model="numpy")
def add(residuals: F64, whitening: F64, sizes: I64, factors: F64, bound: float, most: float, sums: F64, rows: F64) -> bool:
    """See `add_row`."""
    within, place, at = True, 0, 0
    for chunk in range(sizes.size):
        size, square = sizes[chunk], 0.0
        for row in range(size):
            white = 0.0
            for column in range(size):
                white += whitening[at + column] * residuals[place + column]
            square += white * white
            within &= abs(residuals[place + row]) <= bound
            at += size
        place += size
        rows[chunk] += 1.0
        begins = 1.0 / (rows[chunk] * (rows[chunk] + 1.0))
        unit = np.exp(POWER * square)  # one exponential for all tilts: their powers are 2, 15 and 40
        five = (unit * unit) * (unit * unit) * unit
        ten = five * five
        for tilt, power in enumerate((unit * unit, ten * five, (ten * ten) * (ten * ten))):
            value = (sums[tilt, chunk] + begins) * (power * factors[tilt, chunk])
            sums[tilt, chunk] = value
            within &= value <= most
    return bool(within)
