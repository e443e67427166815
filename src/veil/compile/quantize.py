"""Integer weights: what is rounded, to which steps, with which scales."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I8 = NDArray[np.int8]
F32 = NDArray[np.float32]

_LARGEST = 127


GROUP = 32
"""Inputs that share a step and an offset where weights have fewer than 8 bits."""


def quantize_weight(weight: F32, bits: int, divisors: F32 | None = None) -> tuple[I8, F32]:
    """Weight [out, in] → integers [out, in] within ±127 and scales c [out], ``W·s ≈ W_q·c`` for ``divisors`` s [in].

    A row's scale is that of its largest weight, ``c = max|W_row·s| / 127``; a row of zeros has scale 0. See `rounded`.
    Raises `ValueError` for bits outside 2 to 8 or a weight that is not finite.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"n_bits is {bits}, expected 2 to 8")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    divided = weight if divisors is None else weight * divisors
    scale = (np.abs(divided).max(axis=1, initial=0.0) / _LARGEST).astype(np.float32)
    return rounded(weight, bits, scale, divisors), scale


def rounded(weight: F32, bits: int, scale: F32, divisors: F32 | None = None) -> I8:
    """The integers [out, in] of a float32 weight for given scales c [out] and divisors s [in]: anyone gets the same.

    ``W_q = clip(rint(W·s / c), ±127)``, each operation rounded to float32 on its own, halves to even; where c is 0 it
    counts as 1. With fewer than 8 bits each `GROUP` of a row's inputs first takes 2^bits evenly spaced values from its
    least to its greatest. The product still has one scale a row, so neither costs anything in the protocol.
    """
    safe = np.where(scale > 0, scale, 1.0).astype(np.float32)
    values = weight if divisors is None else weight * divisors
    values = values / safe[:, None]
    if bits < 8:
        values = _coarse(values, bits)
    integers: I8 = np.clip(np.rint(values), -_LARGEST, _LARGEST).astype(np.int8)
    return integers


def _coarse(values: F32, bits: int) -> F32:
    """Each group of a row's values rounded to 2^bits evenly spaced ones between its least and greatest."""
    rows, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -width % GROUP)), mode="edge" if width else "constant")
    groups = padded.reshape(rows, -1, GROUP)
    least, greatest = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    step = (greatest - least) / ((1 << bits) - 1)
    step = np.where(step > 0, step, 1.0)
    coarse: F32 = np.rint((groups - least) / step) * step + least
    return coarse.reshape(rows, -1)[:, :width]
