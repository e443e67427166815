"""A row's results, decrypted and checked against secret sign vectors while they are at hand.

One call for both: a kernel that is called once a group between others finds none of its data, and none of its code, in the
caches, which costs more than the check's arithmetic. See `ReferenceKernels.decrypt_checked`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.kept import ZERO, jitted
from veil.kernels.cpu.packing import unpack_words
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.sign_sums import AHEAD_BYTES, STEP, TOGETHER, ask_ahead, products, side_by_side, signed_sum
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
def _received(data, mu, row, col0, bits, shown, scale, bias, words, y):  # type: ignore[no-untyped-def]
    """A row's results, as words [slots] and scaled back."""
    unpack_words(data, ZERO, bits, words.size, True, words)
    _unmasked(words, mu[row, col0 : col0 + words.size])
    _scaled_back(words, 1.0 / shown if shown != 0.0 else 0.0, scale, bias, y)


@jitted(error_model="numpy")
def _residuals(words, halves, block, out):  # type: ignore[no-untyped-def]
    """A row's residuals, in deviations, to out [chunks·J]; returns the largest."""
    chunks, vectors, width = _shape(block)
    count, slots = chunks * vectors, words.size
    at_inverse, at_edges, at_sums, at_signs, _ = _places(chunks, vectors, width, slots)
    inverse = block[at_inverse : at_inverse + 8 * count].view(np.float64)
    edges = block[at_edges : at_edges + 4 * (chunks + 1)].view(np.int32)
    sums, visits = block[at_sums:at_signs].view(np.int16), (count + TOGETHER - 1) // TOGETHER
    signs = block[at_signs : at_signs + vectors * slots].view(np.int8)
    expected = np.empty(visits * TOGETHER, np.uint32)
    for visit in range(visits):
        products(sums, visit, halves, expected)
    largest, place = 0.0, 0
    for chunk in range(chunks):
        first, last = edges[chunk], edges[chunk + 1]
        for j in range(vectors):
            got = signed_sum(signs, j * slots + first, words, first, last - first)
            residual = np.float64(np.int32(np.uint32(got - expected[place]))) * inverse[place]
            out[place] = residual
            largest = max(largest, abs(residual))
            place += 1
    return largest


@jitted(nogil=True, error_model="numpy")
def decrypt_checked(data, sent, mu, row0, col0, bits, shown, scale, bias, block, start, end, y, out):  # type: ignore[no-untyped-def]
    """Rows from start to end: results y [R, slots], residuals in deviations [R, chunks·J]; returns the largest.

    Row t has the shares of row ``row0 + t``; ``block`` is that of `BlockVectors`, ``sent`` what `online.encrypt` gave. See
    `ReferenceKernels.decrypt_checked`.
    """
    chunks, vectors, width = _shape(block)
    ask_ahead(block, _places(chunks, vectors, width, y.shape[1])[2] + AHEAD_BYTES)
    words, largest = np.empty(y.shape[1], np.uint32), 0.0
    for t in range(start, end):
        _received(data[t], mu, row0 + t, col0, bits, shown[t], scale, bias, words, y[t])
        if np.isnan(shown[t]):
            for place in range(out.shape[1]):
                out[t, place] = 0.0
        else:
            largest = max(largest, _residuals(words, sent[t], block, out[t]))
    return largest


@jitted(nogil=True, error_model="numpy")
def decrypt_checked_row(data, sent, mu, row, col0, bits, shown, block, y, out):  # type: ignore[no-untyped-def]
    """`decrypt_checked` of one row, with the scaling that `BlockVectors.hold` put into the block: few arguments."""
    chunks, vectors, width = _shape(block)
    slots = y.shape[1]
    at_scaling = _places(chunks, vectors, width, slots)[4]
    scaling = block[at_scaling : at_scaling + 8 * slots].view(np.float32)
    scale, bias = scaling[:slots], scaling[slots:]
    return decrypt_checked(data, sent, mu, row, col0, bits, shown, scale, bias, block, ZERO, ZERO + 1, y, out)


@parallel(error_model="numpy")
def _decrypt_checked_together(  # type: ignore[no-untyped-def]
    data, sent, mu, row0, col0, bits, shown, scale, bias, block, start, end, threads, y, out, worst
):
    step = -(-(end - start) // threads)
    for job in prange(threads):
        first, last = start + job * step, min(end, start + (job + 1) * step)
        if first < last:
            worst[job] = decrypt_checked(data, sent, mu, row0, col0, bits, shown, scale, bias, block, first, last, y, out)


def decrypt_checked_together(
    data: U8, sent: I16, mu: U32, row0: int, col0: int, bits: int, shown: F64, scale: F32, bias: F32, block: U8, start: int,
    end: int, y: F32, out: F64,
) -> float:  # fmt: skip
    """`decrypt_checked` with all threads."""
    worst = np.zeros(all_threads())
    _decrypt_checked_together(
        data, sent, mu, row0, col0, bits, shown, scale, bias, block, start, end, len(worst), y, out, worst
    )
    return float(worst.max())


@jitted()
def _shape(block):  # type: ignore[no-untyped-def]
    """Chunks, J and width, with which the block begins."""
    sizes = block[:24].view(np.int64)
    return sizes[0], sizes[1], sizes[2]


@jitted()
def _whole_lines(size):  # type: ignore[no-untyped-def]
    return (size + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES


@jitted()
def _places(chunks, vectors, width, slots):  # type: ignore[no-untyped-def]
    """Where inverses, edges, sums, signs and scaling begin in the block of `BlockVectors`, behind its shape."""
    at_edges = LINE_BYTES + _whole_lines(8 * chunks * vectors)
    at_sums = at_edges + _whole_lines(4 * (chunks + 1))
    visits, padded = (chunks * vectors + TOGETHER - 1) // TOGETHER, (width + STEP - 1) // STEP * STEP
    at_signs = at_sums + 2 * visits * TOGETHER * padded
    return LINE_BYTES, at_edges, at_sums, at_signs, at_signs + _whole_lines(vectors * slots)


@dataclass(frozen=True, eq=False)
class BlockVectors(SignVectors):
    """Sign vectors one after the other in one block of bytes, which is one argument of a kernel and one stretch of memory.

    It begins with (chunks, J, width). The scaling of the results is there too, once it is known: ``held`` has it.
    """

    block: U8
    held: list[Scaling] = field(default_factory=list)

    @classmethod
    def of(cls, edges: I32, signs: I8, sums: I16, inverse: F64) -> BlockVectors:
        """A copy of the vectors in a block of their own."""
        slots = signs.shape[1]
        chunks, vectors, width = sums.shape
        *starts, at_scaling = _layout(chunks, vectors, width, slots)
        block = aligned((at_scaling + 8 * slots,), np.uint8)
        block[:24].view(np.int64)[:] = sums.shape
        parts: list[NDArray[Any]] = [inverse, edges, side_by_side(sums.reshape(-1, width)), signs]
        views = []
        for start, array in zip(starts, parts, strict=True):
            view = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            view[:] = array
            views.append(view)
        longest = int(np.diff(edges).max())
        return cls(views[1], views[3], views[2], views[0], longest, block)

    def hold(self, scaling: Scaling) -> None:
        """Put the scaling into the block, if none is there yet."""
        with _holding:
            if not self.held:
                slots = self.signs.shape[1]
                start = len(self.block) - 8 * slots
                here = self.block[start : start + 8 * slots].view(np.float32)
                here[:slots], here[slots:] = scaling.scale, scaling.bias
                self.held.append(scaling)


_holding = threading.Lock()
_layout = _places.py_func
