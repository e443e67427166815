"""A row's results, decrypted and checked against secret sign vectors while they are at hand.

One call for both: a kernel that is called once a group between others finds none of its data, and none of its code, in the
caches, which costs more than the check's arithmetic. See `ReferenceKernels.decrypt_checked`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.kept import ZERO, jitted
from veil.kernels.cpu.online import _ROUND, _divide, _scale, _square_sum
from veil.kernels.cpu.packing import unpack_words
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.threads import all_threads
from veil.kernels.cpu.vector import low_bits
from veil.kernels.interface import SignVectors
from veil.kernels.memory import LINE_BYTES, aligned

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
def _scaled_back(words, inverse, scale, bias, y):  # type: ignore[no-untyped-def]
    for j in range(y.size):
        y[j] = np.float32(np.float64(np.int32(words[j])) * inverse * np.float64(scale[j]) + np.float64(bias[j]))


@jitted()
def _signed(signs, words):  # type: ignore[no-untyped-def]
    """``Σ_j signs_j·words_j`` of signs 1 and -1: their halves are no bits, or all of them."""
    total = np.uint32(0)
    for i in range(words.size):
        mask = np.uint32(np.int32(signs[i]) >> np.int32(1))
        total = np.uint32(total + np.uint32((words[i] ^ mask) - mask))
    return total


@jitted()
def _products(one, other, low, high):  # type: ignore[no-untyped-def]
    """``Σ_i one_i·(low_i + 2^16·high_i)`` modulo 2^32, and that of ``other``: two at once read the words once."""
    lower, upper, other_lower, other_upper = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for i in range(low.size):
        lower = np.int32(lower + np.int32(np.int32(one[i]) * np.int32(low[i])))
        upper = np.int32(upper + np.int32(np.int32(one[i]) * np.int32(high[i])))
        other_lower = np.int32(other_lower + np.int32(np.int32(other[i]) * np.int32(low[i])))
        other_upper = np.int32(other_upper + np.int32(np.int32(other[i]) * np.int32(high[i])))
    shift = np.uint32(16)
    first = np.uint32(np.uint32(lower) + np.uint32(np.uint32(upper) << shift))
    return first, np.uint32(np.uint32(other_lower) + np.uint32(np.uint32(other_upper) << shift))


@jitted(nogil=True, error_model="numpy")
def decrypt_checked(  # type: ignore[no-untyped-def]
    data, x, divisors, target, fixed, mu, row0, col0, bits, shown, scale, bias, block, shape, start, end, y, out
):
    """Rows from start to end: results y [R, slots], residuals in deviations [R, chunks·J]; returns the largest.

    Row t has the shares of row ``row0 + t``; ``block`` and ``shape`` are those of `BlockVectors`. See
    `ReferenceKernels.decrypt_checked`.
    """
    chunks, vectors = shape
    width, slots = x.shape[1], y.shape[1]
    count = chunks * vectors
    at_edges, at_sums, at_signs = _places(chunks, vectors, width)
    inverse = block[: 8 * count].view(np.float64)
    edges = block[at_edges : at_edges + 4 * (chunks + 1)].view(np.int32)
    sums = block[at_sums : at_sums + 2 * count * width].view(np.int16)
    signs = block[at_signs : at_signs + vectors * slots].view(np.int8)
    row, words, expected = np.empty(width, np.float32), np.empty(slots, np.uint32), np.empty(count, np.uint32)
    low, high = np.empty(width, np.int16), np.empty(width, np.int16)
    largest = 0.0
    for t in range(start, end):
        unpack_words(data[t], ZERO, bits, slots, True, words)
        _unmasked(words, mu[row0 + t, col0 : col0 + slots])
        _scaled_back(words, 1.0 / shown[t] if shown[t] != 0.0 else 0.0, scale, bias, y[t])
        _divide(x[t], divisors, row)
        tau = _scale(_square_sum(row), target, fixed)
        if np.isnan(tau):
            for place in range(count):
                out[t, place] = 0.0
        else:
            _quantized(row, tau, low, high)
            for place in range(0, count, 2):
                following = min(place + 1, count - 1)  # the last one twice where their number is odd
                one = sums[place * width : (place + 1) * width]
                expected[place], expected[following] = _products(
                    one, sums[following * width : (following + 1) * width], low, high
                )
            place = 0
            for chunk in range(chunks):
                first, last = edges[chunk], edges[chunk + 1]
                values = words[first:last]
                for j in range(vectors):
                    got = _signed(signs[j * slots + first : j * slots + last], values)
                    residual = np.float64(np.int32(np.uint32(got - expected[place]))) * inverse[place]
                    out[t, place] = residual
                    largest = max(largest, abs(residual))
                    place += 1
    return largest


@parallel(error_model="numpy")
def _decrypt_checked_together(  # type: ignore[no-untyped-def]
    data, x, divisors, target, fixed, mu, row0, col0, bits, shown, scale, bias, block, shape, start, end, threads, y, out,
    worst,
):  # fmt: skip
    step = -(-(end - start) // threads)
    for job in prange(threads):
        first, last = start + job * step, min(end, start + (job + 1) * step)
        if first < last:
            worst[job] = decrypt_checked(
                data, x, divisors, target, fixed, mu, row0, col0, bits, shown, scale, bias, block, shape, first, last, y, out
            )


def decrypt_checked_together(
    data: U8, x: F32, divisors: F32, target: float, fixed: float, mu: U32, row0: int, col0: int, bits: int, shown: F64,
    scale: F32, bias: F32, block: U8, shape: tuple[int, int], start: int, end: int, y: F32, out: F64,
) -> float:  # fmt: skip
    """`decrypt_checked` with all threads."""
    worst = np.zeros(all_threads())
    _decrypt_checked_together(
        data, x, divisors, target, fixed, mu, row0, col0, bits, shown, scale, bias, block, shape, start, end, len(worst), y,
        out, worst,
    )  # fmt: skip
    return float(worst.max())


@jitted()
def _places(chunks, vectors, width):  # type: ignore[no-untyped-def]
    """Where edges, sums and signs begin in the block of `BlockVectors`; the inverses are at its beginning."""
    line = LINE_BYTES - 1
    at_edges = (8 * chunks * vectors + line) // LINE_BYTES * LINE_BYTES
    at_sums = at_edges + (4 * (chunks + 1) + line) // LINE_BYTES * LINE_BYTES
    at_signs = at_sums + (2 * chunks * vectors * width + line) // LINE_BYTES * LINE_BYTES
    return at_edges, at_sums, at_signs


@dataclass(frozen=True, eq=False)
class BlockVectors(SignVectors):
    """Sign vectors one after the other in one block of bytes, which is one argument of a kernel and one stretch of memory.

    ``shape`` is (chunks, J).
    """

    block: U8
    shape: tuple[int, int]

    @classmethod
    def of(cls, edges: I32, signs: I8, sums: I16, inverse: F64) -> BlockVectors:
        """A copy of the vectors in a block of their own."""
        chunks, vectors, width = sums.shape
        at_edges, at_sums, at_signs = _places.py_func(chunks, vectors, width)
        block = aligned((at_signs + signs.size,), np.uint8)
        views = []
        for start, array in ((0, inverse), (at_edges, edges), (at_sums, sums), (at_signs, signs)):
            view = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            view[:] = array
            views.append(view)
        longest = int(np.diff(edges).max())
        return cls(views[1], views[3], views[2], views[0], longest, block, (chunks, vectors))
