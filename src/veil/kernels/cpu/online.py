"""The online steps of both halves: the server's answer, the client's encryption and decryption of rows.

Each function means what its namesake of `ReferenceKernels` does; arrays are in C order, one thread is the calling one.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.kept import ZERO, jitted
from veil.kernels.cpu.packing import pack_words, unpack_words
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.planes import take_apart
from veil.kernels.cpu.product import FEW, ROWS_APART, add_products, kept_bits, new_planes, padded_width, rows_at_once
from veil.kernels.cpu.sign_sums import take_halves
from veil.kernels.cpu.vector import low_bits
from veil.kernels.memory import LINE_BYTES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]

_TILE = 256  # results of each row that are finished together where rows are many; whole bytes
_PIECE = 1024  # words that are decrypted together: whole bytes, in the first-level cache
_ROUND = 6755399441055744.0  # 1.5·2^52: the sum with a float64 below 2^51 has the rounded integer as its low bits


@jitted()
def _planes_of(data, start, end, width, bits):  # type: ignore[no-untyped-def]
    """Packed rows from start to end as planes."""
    padded = padded_width(width)
    kept = kept_bits(bits, end - start)
    planes = new_planes(end - start, padded, kept)
    words = np.zeros(padded, np.uint32)
    for t in range(start, end):
        unpack_words(data[t], ZERO, bits, width, True, words)
        take_apart(words, padded, kept, planes, t - start)
    return planes


@jitted()
def _answer_rows(planes, start, weights, first, last, shares, row0, col0, input_bits, bits, out):  # type: ignore[no-untyped-def]
    """Results from first, a multiple of 8, up to last of the rows in planes, of which the first is row ``start``."""
    rows, padded, kept = planes.shape[0], padded_width(weights.shape[1]), kept_bits(input_bits, planes.shape[0])
    half, down = np.uint32((1 << (32 - bits)) >> 1), np.uint32(32 - bits)
    tile = last - first if rows <= FEW else _TILE
    u = np.empty((rows, tile), np.uint32)
    for begin in range(first, last, tile):
        count = min(tile, last - begin)
        for t in range(rows):
            for j in range(count):
                u[t, j] = half - shares[row0 + start + t, col0 + begin + j]
        add_products(weights, begin, begin + count, planes, padded, kept, u, -begin)
        for t in range(rows):
            for j in range(count):
                u[t, j] = u[t, j] >> down
            pack_words(u[t], count, bits, out[start + t], begin * bits // 8)


@jitted(nogil=True)
def _answer(data, weights, shares, row0, col0, input_bits, bits, start, end, out):  # type: ignore[no-untyped-def]
    """`answer` of the rows from start to end."""
    count, width = weights.shape
    step = rows_at_once(padded_width(width))
    for t in range(start, end, step):
        planes = _planes_of(data, t, min(end, t + step), width, input_bits)
        _answer_rows(planes, t, weights, ZERO, count, shares, row0, col0, input_bits, bits, out)


@parallel()
def _answer_by_rows(data, weights, shares, row0, col0, input_bits, bits, threads, out):  # type: ignore[no-untyped-def]
    rows = data.shape[0]
    step = -(-rows // threads)
    for job in prange(threads):
        start = job * step
        _answer(data, weights, shares, row0, col0, input_bits, bits, start, min(rows, start + step), out)


@parallel()
def _answer_by_weights(data, weights, shares, row0, col0, input_bits, bits, threads, out):  # type: ignore[no-untyped-def]
    count = weights.shape[0]
    planes = _planes_of(data, ZERO, data.shape[0], weights.shape[1], input_bits)
    step = -(-count // (8 * threads)) * 8
    for job in prange(threads):
        first, last = job * step, min(count, (job + 1) * step)
        if first < last:
            _answer_rows(planes, ZERO, weights, first, last, shares, row0, col0, input_bits, bits, out)


def answer(
    data: U8, weights: I8, shares: U32, row0: int, col0: int, input_bits: int, result_bits: int, threads: int, out: U8
) -> None:
    """Packed rows → packed ``W·b - shares``, rounded to ``result_bits``; see `ReferenceKernels.answer`."""
    rows = len(data)
    if not out.size:
        return
    if threads == 1:
        _answer(data, weights, shares, row0, col0, input_bits, result_bits, 0, rows, out)
    elif rows >= ROWS_APART * threads:
        _answer_by_rows(data, weights, shares, row0, col0, input_bits, result_bits, threads, out)
    else:
        _answer_by_weights(data, weights, shares, row0, col0, input_bits, result_bits, threads, out)


@jitted(nogil=True)
def _read_lines(data, first, last):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(first, last, LINE_BYTES):
        total += np.int64(data[i])
    return total


def read_lines(weights: I8, first: int, last: int) -> int:
    """Bring weights from ``first`` up to ``last``, of all in order, into the caches; the sum of one in each line."""
    return int(_read_lines(weights.reshape(-1), first, last))


@jitted(fastmath={"reassoc"})
def _square_sum(x):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(x.size):
        v = np.float64(x[j])
        total += v * v
    return total


@jitted(error_model="numpy")
def _scale_of(total, target, fixed):  # type: ignore[no-untyped-def]
    """τ of a row with this sum of squares: NaN where it is not finite."""
    if not np.isfinite(total):
        return np.nan
    tau = target / np.sqrt(total) if total != 0.0 else 0.0
    if fixed == 0.0:
        return tau
    return min(tau, target / fixed) if tau != 0.0 else target / fixed


@jitted(error_model="numpy")
def _divide(x, divisors, out):  # type: ignore[no-untyped-def]
    if divisors.size:
        for j in range(out.size):
            out[j] = x[j] / divisors[j]
    else:
        for j in range(out.size):
            out[j] = x[j]


@jitted()
def _scaled(x, scale, words):  # type: ignore[no-untyped-def]
    """``round(x·scale)`` modulo 2^32."""
    for j in range(words.size):
        words[j] = low_bits(np.float64(x[j]) * scale + _ROUND)


@jitted()
def _mask(words, pads, half, down):  # type: ignore[no-untyped-def]
    for j in range(words.size):
        words[j] = np.uint32(np.uint32(words[j] + pads[j]) + half) >> down


@jitted(nogil=True, error_model="numpy")
def _encrypt(x, divisors, target, fixed, pads, row0, col0, bits, start, end, out, tau, shown, sent):  # type: ignore[no-untyped-def]
    """`encrypt` of the rows from start to end."""
    width = x.shape[1]
    half, down = np.uint32((1 << (32 - bits)) >> 1), np.uint32(32 - bits)
    row, words = np.empty(width, np.float32), np.empty(width, np.uint32)
    for t in range(start, end):
        _divide(x[t], divisors, row)
        scale = _scale_of(_square_sum(row), target, fixed)
        tau[t] = scale
        shown[t] = scale if fixed == 0.0 or np.isnan(scale) else target / fixed
        if np.isnan(scale):
            for j in range(out.shape[1]):
                out[t, j] = 0
            continue
        _scaled(row, scale, words)
        if sent.shape[1]:
            take_halves(words, sent[t])
        _mask(words, pads[row0 + t, col0 : col0 + width], half, down)
        pack_words(words, width, bits, out[t], ZERO)


@parallel(error_model="numpy")
def _encrypt_together(x, divisors, target, fixed, pads, row0, col0, bits, threads, out, tau, shown, sent):  # type: ignore[no-untyped-def]
    rows = x.shape[0]
    step = -(-rows // threads)
    for job in prange(threads):
        start, end = job * step, min(rows, (job + 1) * step)
        _encrypt(x, divisors, target, fixed, pads, row0, col0, bits, start, end, out, tau, shown, sent)


def encrypt(
    x: F32,
    divisors: F32,
    target: float,
    fixed: float,
    pads: U32,
    row0: int,
    col0: int,
    bits: int,
    threads: int,
    out: U8,
    tau: F64,
    shown: F64,
    sent: I16,
) -> None:
    """Rows [T, d] → packed ``round(τ·x/divisors) + pads``; see `ReferenceKernels.encrypt`. ``target`` is below 2^51.

    ``sent`` takes each finite row's quantized words by `take_halves`, for checks; it has no columns where there are none.
    """
    if threads > 1 and len(x) > 1:
        _encrypt_together(x, divisors, target, fixed, pads, row0, col0, bits, threads, out, tau, shown, sent)
    else:
        _encrypt(x, divisors, target, fixed, pads, row0, col0, bits, 0, len(x), out, tau, shown, sent)


@jitted()
def _read_off(words, mu, inverse, scale, bias, y):  # type: ignore[no-untyped-def]
    for j in range(y.size):
        value = np.int32(np.uint32(words[j] - mu[j]))
        y[j] = np.float32(np.float64(value) * inverse * np.float64(scale[j]) + np.float64(bias[j]))


@jitted(nogil=True, error_model="numpy")
def _decrypt(data, mu, row0, col0, bits, shown, scale, bias, start, end, y):  # type: ignore[no-untyped-def]
    """`decrypt` of the pieces from start to end, counted through all rows."""
    count = y.shape[1]
    pieces = -(-count // _PIECE)
    words = np.empty(_PIECE, np.uint32)
    for piece in range(start, end):
        t, first = piece // pieces, piece % pieces * _PIECE
        size = min(_PIECE, count - first)
        unpack_words(data[t], first * bits // 8, bits, size, True, words)
        inverse = 1.0 / shown[t] if shown[t] != 0.0 else 0.0
        last = first + size
        shares = mu[row0 + t, col0 + first : col0 + last]
        _read_off(words, shares, inverse, scale[first:last], bias[first:last], y[t, first:last])


@parallel(error_model="numpy")
def _decrypt_together(data, mu, row0, col0, bits, shown, scale, bias, pieces, threads, y):  # type: ignore[no-untyped-def]
    step = -(-pieces // threads)
    for job in prange(threads):
        start, end = job * step, min(pieces, (job + 1) * step)
        _decrypt(data, mu, row0, col0, bits, shown, scale, bias, start, end, y)


def decrypt(
    data: U8, mu: U32, row0: int, col0: int, bits: int, shown: F64, scale: F32, bias: F32, threads: int, y: F32
) -> None:
    """Packed results and μ → ``(word - μ)/shown·scale + bias``; see `ReferenceKernels.decrypt`."""
    pieces = len(y) * -(-y.shape[1] // _PIECE)
    if threads > 1 and pieces > 1:
        _decrypt_together(data, mu, row0, col0, bits, shown, scale, bias, pieces, threads, y)
    else:
        _decrypt(data, mu, row0, col0, bits, shown, scale, bias, 0, pieces, y)
