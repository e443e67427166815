"""A row's results, decrypted and checked against secret sign vectors while they are at hand.

One call for both: a kernel that is called once a group between others finds none of its data, and none of its code, in the
caches, which costs more than the check's arithmetic. See `ReferenceKernels.decrypt_checked`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.kept import ZERO, jitted
from veil.kernels.cpu.online import divide, scale_of, scaled, square_sum
from veil.kernels.cpu.packing import unpack_words
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.sign_sums import STEP, TOGETHER, ask_ahead, four_products, signed_sum, take_halves
from veil.kernels.cpu.threads import all_threads
from veil.kernels.interface import Scaling, SignVectors
from veil.kernels.memory import LINE_BYTES, aligned

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]


@jitted()
def _unmasked(words, mu):  # type: ignore[no-untyped-def]
    for i in range(words.size):
        words[i] = np.uint32(words[i] - mu[i])


@jitted()
def _scaled_back(words, inverse, scale, bias, y):  # type: ignore[no-untyped-def]
    for j in range(y.size):
        y[j] = np.float32(np.float64(np.int32(words[j])) * inverse * np.float64(scale[j]) + np.float64(bias[j]))


@jitted()
def _signed(signs, begin, words, first, last):  # type: ignore[no-untyped-def]
    """``Σ_j signs_j·words_j`` modulo 2^32 of the words from first to last, and the signs 1 and -1 from ``begin`` on."""
    count = (last - first) // STEP * STEP
    total = signed_sum(signs, begin, words, first, count)
    for i in range(count, last - first):
        word = words[first + i]
        total = np.uint32(total + (word if signs[begin + i] > 0 else np.uint32(np.uint32(0) - word)))
    return total


@jitted()
def _received(data, mu, row, col0, bits, shown, scale, bias, words, y):  # type: ignore[no-untyped-def]
    """A row's results, as words [slots] and scaled back."""
    unpack_words(data, ZERO, bits, words.size, True, words)
    _unmasked(words, mu[row, col0 : col0 + words.size])
    _scaled_back(words, 1.0 / shown if shown != 0.0 else 0.0, scale, bias, y)


@jitted(error_model="numpy")
def _residuals(words, halves, block, shape, out):  # type: ignore[no-untyped-def]
    """A row's residuals, in deviations, to out [chunks·J]; returns the largest."""
    chunks, vectors, width = shape
    count, slots = chunks * vectors, words.size
    at_edges, at_sums, at_signs, _ = _places(chunks, vectors, width, slots)
    inverse = block[: 8 * count].view(np.float64)
    edges = block[at_edges : at_edges + 4 * (chunks + 1)].view(np.int32)
    sums = block[at_sums : at_sums + 2 * count * width].view(np.int16)
    signs = block[at_signs : at_signs + vectors * slots].view(np.int8)
    expected = np.empty(count, np.uint32)
    for place in range(0, count, TOGETHER):
        four_products(sums, width, place, count - 1, halves, expected)
    largest, place = 0.0, 0
    for chunk in range(chunks):
        first, last = edges[chunk], edges[chunk + 1]
        for j in range(vectors):
            got = _signed(signs, j * slots + first, words, first, last)
            residual = np.float64(np.int32(np.uint32(got - expected[place]))) * inverse[place]
            out[place] = residual
            largest = max(largest, abs(residual))
            place += 1
    return largest


@jitted(nogil=True, error_model="numpy")
def decrypt_checked(  # type: ignore[no-untyped-def]
    data, x, divisors, target, fixed, mu, row0, col0, bits, shown, scale, bias, block, shape, start, end, y, out
):
    """Rows from start to end: results y [R, slots], residuals in deviations [R, chunks·J]; returns the largest.

    Row t has the shares of row ``row0 + t``; ``block`` and ``shape`` are those of `BlockVectors`. See
    `ReferenceKernels.decrypt_checked`.
    """
    width = shape[2]
    ask_ahead(block, _places(shape[0], shape[1], width, y.shape[1])[1] + 2 * TOGETHER * width)
    row, sent, words = np.empty(width, np.float32), np.empty(width, np.uint32), np.empty(y.shape[1], np.uint32)
    halves, largest = np.empty(2 * ((width + STEP - 1) // STEP * STEP), np.int16), 0.0
    for t in range(start, end):
        _received(data[t], mu, row0 + t, col0, bits, shown[t], scale, bias, words, y[t])
        divide(x[t], divisors, row)
        tau = scale_of(square_sum(row), target, fixed)
        if np.isnan(tau):
            for place in range(out.shape[1]):
                out[t, place] = 0.0
        else:
            scaled(row, tau, sent)
            take_halves(sent, halves)
            largest = max(largest, _residuals(words, halves, block, shape, out[t]))
    return largest


@jitted(nogil=True, error_model="numpy")
def decrypt_checked_row(data, x, mu, row, col0, bits, shown, target, fixed, block, shape, y, out):  # type: ignore[no-untyped-def]
    """`decrypt_checked` of one row, with the scaling that `BlockVectors.hold` put into the block: few arguments."""
    chunks, vectors, width = shape
    slots = y.shape[1]
    at_scaling = _places(chunks, vectors, width, slots)[3]
    scaling = block[at_scaling : at_scaling + 8 * slots + 4 * width].view(np.float32)
    scale, bias, divisors = scaling[:slots], scaling[slots : 2 * slots], scaling[2 * slots :]
    return decrypt_checked(
        data, x, divisors, target, fixed, mu, row, col0, bits, shown, scale, bias, block, shape, ZERO, ZERO + 1, y, out
    )


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
    scale: F32, bias: F32, block: U8, shape: tuple[int, int, int], start: int, end: int, y: F32, out: F64,
) -> float:  # fmt: skip
    """`decrypt_checked` with all threads."""
    worst = np.zeros(all_threads())
    _decrypt_checked_together(
        data, x, divisors, target, fixed, mu, row0, col0, bits, shown, scale, bias, block, shape, start, end, len(worst), y,
        out, worst,
    )  # fmt: skip
    return float(worst.max())


@jitted()
def _whole_lines(size):  # type: ignore[no-untyped-def]
    return (size + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES


@jitted()
def _places(chunks, vectors, width, slots):  # type: ignore[no-untyped-def]
    """Where edges, sums, signs and scaling begin in the block of `BlockVectors`; the inverses are at its beginning."""
    at_edges = _whole_lines(8 * chunks * vectors)
    at_sums = at_edges + _whole_lines(4 * (chunks + 1))
    at_signs = at_sums + _whole_lines(2 * chunks * vectors * width)
    return at_edges, at_sums, at_signs, at_signs + _whole_lines(vectors * slots)


@dataclass(frozen=True, eq=False)
class BlockVectors(SignVectors):
    """Sign vectors one after the other in one block of bytes, which is one argument of a kernel and one stretch of memory.

    ``shape`` is (chunks, J, width). The scaling of the results is there too, once it is known: ``held`` has it.
    """

    block: U8
    shape: tuple[int, int, int]
    held: list[Scaling] = field(default_factory=list)

    @classmethod
    def of(cls, edges: I32, signs: I8, sums: I16, inverse: F64) -> BlockVectors:
        """A copy of the vectors in a block of their own."""
        chunks, vectors, width = sums.shape
        slots = signs.shape[1]
        at_edges, at_sums, at_signs, at_scaling = _layout(chunks, vectors, width, slots)
        block = aligned((at_scaling + 8 * slots + 4 * width + 2 * STEP,), np.uint8)  # a turn reads beyond the sums
        views = []
        for start, array in ((0, inverse), (at_edges, edges), (at_sums, sums), (at_signs, signs)):
            view = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            view[:] = array
            views.append(view)
        longest = int(np.diff(edges).max())
        return cls(views[1], views[3], views[2], views[0], longest, block, (chunks, vectors, width))

    def hold(self, scaling: Scaling) -> None:
        """Put the scaling into the block, if none is there yet."""
        with _holding:
            if not self.held:
                slots, width = self.signs.shape[1], self.shape[2]
                start = _layout(*self.shape, slots)[3]
                here = self.block[start : start + 8 * slots + 4 * width].view(np.float32)
                here[:slots], here[slots : 2 * slots] = scaling.scale, scaling.bias
                here[2 * slots :] = 1.0 if scaling.divisors is None else scaling.divisors
                self.held.append(scaling)


_holding = threading.Lock()
_layout = _places.py_func
