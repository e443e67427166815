"""What a pass of one row needs besides its groups' checks, in a kernel each: the running test, the likely tokens' logits.

What numpy does in thirty calls costs as much as a group's check; torch's threads wait for a core where others compute.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILTS = (0.02, 0.15, 0.4)
"""λ: for deviations that are small, middling and large beside the noise; each has a third of the false alarms."""

_COMPARED = 256
"""Outputs that are looked at together: hardly any of them are likely."""


@jitted(nogil=True, error_model="numpy")
def add_row(residuals: F64, whitening: F64, sizes: I64, factors: F64, most: float, sums: F64, rows: F64) -> int:
    """Add a row's residuals [Σ sizes] to sums [tilts, chunks] and rows [chunks]; the chunk with the largest sum beyond
    ``most``, or -1.

    ``whitening`` has each chunk's matrix M [size, size], one after the other; the squares are those of M·ε. ``factors``
    [tilts, chunks] are (1 - 2λ)^(size/2) of `TILTS`. See `veil.checks.running`.
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
        unit = np.exp(0.01 * square)  # one exponential for all tilts: their powers are 2, 15 and 40
        five = (unit * unit) * (unit * unit) * unit
        ten = five * five
        for tilt, power in enumerate((unit * unit, ten * five, (ten * ten) * (ten * ten))):
            value = (sums[tilt, chunk] + begins) * (power * factors[tilt, chunk])
            sums[tilt, chunk] = value
            if not value <= most:
                beyond = np.inf if np.isnan(value) else value
                if found < 0 or beyond > largest:
                    found, largest = chunk, beyond
    return found


@jitted(nogil=True)
def refine_likely(x: F32, table: F32, likely: int, outputs: F32) -> None:
    """Replace the ``likely`` largest outputs [slots] by x [width] times their rows of ``table`` [slots, width]."""
    places, values = np.zeros(likely, np.intp), np.full(likely, -np.inf, np.float32)
    least = 0
    for start in range(0, outputs.size, _COMPARED):
        end = min(outputs.size, start + _COMPARED)
        if _any_above(outputs[start:end], values[least]):
            for slot in range(start, end):
                if outputs[slot] > values[least]:
                    places[least], values[least] = slot, outputs[slot]
                    least = int(values.argmin())
    for place in range(likely):
        if values[place] > -np.inf:
            outputs[places[place]] = _product(x, table[places[place]])


@jitted()
def _any_above(outputs: F32, bound: np.float32) -> bool:
    """Whether one of the outputs is larger; without a branch, and in their size, so that vectors compare them."""
    found = np.int32(0)
    for slot in range(outputs.size):
        found |= np.int32(outputs[slot] > bound)
    return found != 0


@jitted(fastmath={"reassoc", "contract"})
def _product(a: F32, b: F32) -> np.float32:
    total = np.float32(0.0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total
