"""The likely tokens' logits of one row, in one kernel: torch's threads wait for a core where others compute."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted

F32 = NDArray[np.float32]

_COMPARED = 256
"""Outputs that are looked at together: hardly any of them are likely."""


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
