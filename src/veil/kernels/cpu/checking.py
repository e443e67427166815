"""The client's check of a row's results against its secret sign vectors; see `ReferenceKernels.residuals`."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted
from veil.kernels.cpu.online import _ROUND, _divide, _scale, _square_sum
from veil.kernels.cpu.packing import unpack_words
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.vector import low_bits

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]


@jitted()
def _quantized(x, scale, low, high):  # type: ignore[no-untyped-def]
    """``round(x·scale)`` modulo 2^32 as ``low + 2^16·high``, both signed: 16-bit products go two at a time."""
    for i in range(low.size):
        word = low_bits(np.float64(x[i]) * scale + _ROUND)
        low[i] = np.int16(word)
        high[i] = np.int16(np.uint32(word + np.uint32(0x8000)) >> np.uint32(16))


@jitted()
def _unmasked(words, mu):  # type: ignore[no-untyped-def]
    for i in range(words.size):
        words[i] = np.uint32(words[i] - mu[i])


@jitted()
def _signed(signs, words):  # type: ignore[no-untyped-def]
    """``Σ_j signs_j·words_j`` of signs 1 and -1: their halves are no bits, or all of them."""
    total = np.uint32(0)
    for i in range(words.size):
        mask = np.uint32(np.int32(signs[i]) >> np.int32(1))
        total = np.uint32(total + np.uint32((words[i] ^ mask) - mask))
    return total


@jitted()
def _product(factors, low, high):  # type: ignore[no-untyped-def]
    """``Σ_i factors_i·(low_i + 2^16·high_i)`` modulo 2^32."""
    lower, upper = np.int32(0), np.int32(0)
    for i in range(low.size):
        lower = np.int32(lower + np.int32(np.int32(factors[i]) * np.int32(low[i])))
        upper = np.int32(upper + np.int32(np.int32(factors[i]) * np.int32(high[i])))
    return np.uint32(np.uint32(lower) + np.uint32(np.uint32(upper) << np.uint32(16)))


@jitted(nogil=True, error_model="numpy")
def _residuals(  # type: ignore[no-untyped-def]
    data, x, divisors, target, fixed, mu, row0, col0, bits, edges, signs, sums, inverse, start, end, out, worst
):
    """`residuals` of the rows from start to end."""
    chunks, vectors, width = sums.shape
    slots = edges[chunks]
    row, words = np.empty(width, np.float32), np.empty(slots, np.uint32)
    low, high = np.empty(width, np.int16), np.empty(width, np.int16)
    for t in range(start, end):
        _divide(x[t], divisors, row)
        scale = _scale(_square_sum(row), target, fixed)
        worst[t] = 0.0
        if np.isnan(scale):
            for place in range(chunks * vectors):
                out[t, place] = 0.0
            continue
        _quantized(row, scale, low, high)
        unpack_words(data[t], 0, bits, slots, True, words)
        _unmasked(words, mu[row0 + t, col0 : col0 + slots])
        for chunk in range(chunks):
            first, last = edges[chunk], edges[chunk + 1]
            values = words[first:last]
            for j in range(vectors):
                rest = np.uint32(_signed(signs[j, first:last], values) - _product(sums[chunk, j], low, high))
                residual = np.float64(np.int32(rest)) * inverse[chunk, j]
                out[t, chunk * vectors + j] = residual
                worst[t] = max(worst[t], abs(residual))


@parallel(error_model="numpy")
def _residuals_together(  # type: ignore[no-untyped-def]
    data, x, divisors, target, fixed, mu, row0, col0, bits, edges, signs, sums, inverse, threads, out, worst
):
    rows = x.shape[0]
    step = -(-rows // threads)
    for job in prange(threads):
        start, end = job * step, min(rows, (job + 1) * step)
        if start < end:
            _residuals(
                data, x, divisors, target, fixed, mu, row0, col0, bits, edges, signs, sums, inverse, start, end, out, worst
            )


def residuals(
    data: U8,
    x: F32,
    divisors: F32,
    target: float,
    fixed: float,
    mu: U32,
    row0: int,
    col0: int,
    bits: int,
    edges: I32,
    signs: I8,
    sums: I16,
    inverse: F64,
    threads: int,
    out: F64,
    worst: F64,
) -> None:
    """Rows x [T, d] and their packed results → residuals in deviations, and the largest of each row."""
    if threads > 1 and len(x) > 1:
        _residuals_together(
            data, x, divisors, target, fixed, mu, row0, col0, bits, edges, signs, sums, inverse, threads, out, worst
        )
        return
    _residuals(data, x, divisors, target, fixed, mu, row0, col0, bits, edges, signs, sums, inverse, 0, len(x), out, worst)
