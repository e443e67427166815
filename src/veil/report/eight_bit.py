"""8-bit dynamic quantization of activations, as other systems do it, to compare with."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.model.router import Service

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]


def eight_bit_service(weights: tuple[I8, ...], kernels: ModuleType) -> Service:
    """The product with each row rounded to 8 bits by its own largest value, in the units of the other services."""
    return lambda group, x, tau: eight_bit_product(weights[group], x, tau, kernels)


def eight_bit_product(weights: I8, x: F32, tau: F64, kernels: ModuleType) -> I32:
    """``W_q·x₈·(c₈·τ)`` [T, out] for ``x₈ = round(x / c₈)``, ``c₈ = max|x| / 127`` of rows x [T, in]."""
    step = np.abs(x).max(axis=1, initial=0.0).astype(np.float64) / 127
    safe = np.where(step > 0, step, 1.0)
    rounded = np.rint(x / safe[:, None]).astype(np.int32).view(np.uint32)
    product = kernels.matmul(weights, np.ascontiguousarray(rounded)).view(np.int32)
    values = product * (step * tau)[:, None]
    clipped: I32 = np.clip(np.rint(values), -(2**31), 2**31 - 1).astype(np.int32)
    return clipped
