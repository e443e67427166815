"""The running test of a pass of one row, in one kernel: what numpy does in thirty calls costs as much as a group's check."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@jitted(nogil=True, error_model="numpy")
def add_row(residuals: F64, whitening: F64, sizes: I64, tilts: F64, decay: F64, most: float, sums: F64, rows: F64) -> int:
    """Add a row's residuals [Σ sizes] to sums [tilts, chunks] and rows [chunks]; the chunk with the largest sum beyond
    ``most``, or -1.

    ``whitening`` has each chunk's matrix M [size, size], one after the other; the squares are those of M·ε. See
    `veil.checks.running`.
    """
    found, largest, place, at = -1, 0.0, 0, 0
    for chunk in range(sizes.size):
        size, square = sizes[chunk], 0.0
        for _ in range(size):
            white = 0.0
            for column in range(size):
                white += whitening[at + column] * residuals[place + column]
            square += white * white
            at += size
        place += size
        rows[chunk] += 1.0
        begins = 1.0 / (rows[chunk] * (rows[chunk] + 1.0))
        for tilt in range(tilts.size):
            value = (sums[tilt, chunk] + begins) * np.exp(tilts[tilt] * square + decay[tilt, chunk])
            sums[tilt, chunk] = value
            if not value <= most:
                beyond = np.inf if np.isnan(value) else value
                if found < 0 or beyond > largest:
                    found, largest = chunk, beyond
    return found
