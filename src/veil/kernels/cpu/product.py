"""The online product of int8 weights and rows of words, modulo 2^32: from one row to thousands."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from veil.kernels.cpu.dots import visit_1, visit_2, visit_3, visit_4, visit_6, weights_of
from veil.kernels.cpu.kept import ZERO, jitted
from veil.kernels.cpu.one_row import PLANES, ROWS, add_one_row, has_byte_dots
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.planes import BYTES, PAIRS, STEP, form, take_apart
from veil.kernels.memory import LINE_BYTES

FEW = 4
"""Rows that are multiplied in one reading of the weights."""
TILE = 64
"""Rows of weights that stay in the cache for one group of rows after the other."""
ROWS_APART = 16
"""Rows for each thread from which threads share the rows, and not the weights."""
_BLOCK = 768  # weights of one row in a visit where rows are many: planes of six rows stay in the first-level cache
_FEW_BLOCK = 8192  # the same where rows are few, over their number
_CHUNK_BYTES = 1 << 18  # planes that stay in the second-level cache


@jitted()
def kept_bits(bits, rows):  # type: ignore[no-untyped-def]
    """Top bits that planes of so many rows keep of words of which ``bits`` are used, on this machine; see `planes`."""
    if rows == 1 and bits <= 8 * PLANES and has_byte_dots():
        return 8 * PLANES
    if form() == PAIRS:
        return 16 if bits <= 16 else 23 if bits <= 23 else 32
    if form() == BYTES:
        return max(8, (bits + 7) // 8 * 8)
    return 32


@jitted()
def padded_width(width):  # type: ignore[no-untyped-def]
    """Words of a row in planes: whole turns of the loops."""
    return (width + STEP - 1) // STEP * STEP


@jitted()
def rows_at_once(padded):  # type: ignore[no-untyped-def]
    """Rows whose planes stay in the cache together: some groups of six."""
    return max(12, min(96, _CHUNK_BYTES // (3 * padded) // 6 * 6))


@jitted()
def new_planes(rows, padded, kept):  # type: ignore[no-untyped-def]
    """Room for planes [rows, bytes] uint8, from a line on, rows not a power of two apart."""
    size = padded * ((kept + 7) // 8) + LINE_BYTES
    room = np.empty(rows * size + LINE_BYTES, np.uint8)
    start = -room.ctypes.data % LINE_BYTES
    return room[start : start + rows * size].reshape(rows, size)


@jitted()
def _group(left):  # type: ignore[no-untyped-def]
    """Rows of the next visits, of those that are left: 1, 2, 3, 4 or 6."""
    if left >= 9 or left == 6:
        return 6
    return 4 if left >= 7 or left == 4 else min(left, 3)


@jitted()
def _some_rows(weights, first, last, streams, offset, t, group, k, count, planes, padded, kept, u):  # type: ignore[no-untyped-def]
    """A block of each row of weights from first to last with a group of rows, in one stream or a stream for each half."""
    half = weights_of(group) // 2
    middle = first + (last - first + 1) // 2
    end, apart, step = (middle, middle - first, half) if streams == 2 else (last, half, 2 * half)
    for j in range(first, end, step):
        j1 = j + apart
        if group == 6:
            visit_6(weights, j, end, j1, last, planes, t, k, count, padded, kept, u, offset)
        elif group == 4:
            visit_4(weights, j, end, j1, last, planes, t, k, count, padded, kept, u, offset)
        elif group == 3:
            visit_3(weights, j, end, j1, last, planes, t, k, count, padded, kept, u, offset)
        elif group == 2:
            visit_2(weights, j, end, j1, last, planes, t, k, count, padded, kept, u, offset)
        else:
            visit_1(weights, j, end, j1, last, planes, t, k, count, padded, kept, u, offset)


@jitted()
def _add_part(weights, first, last, offset, planes, padded, kept, u):  # type: ignore[no-untyped-def]
    """`add_products` where every row of weights may be read up to the padded width."""
    rows = planes.shape[0]
    few = rows <= FEW
    block = _FEW_BLOCK // rows // STEP * STEP if few else _BLOCK
    tile, streams = (last - first, 2) if few else (TILE, 1)
    for start in range(first, last, tile):
        for k in range(0, padded, block):
            t = ZERO
            while t < rows:
                group, end, count = _group(rows - t), min(start + tile, last), min(block, padded - k)
                _some_rows(weights, start, end, streams, offset, t, group, k, count, planes, padded, kept, u)
                t += group


@jitted()
def add_products(weights, first, last, planes, padded, kept, u, offset):  # type: ignore[no-untyped-def]
    """``u[t, j + offset] += Σ_i weights[j, i]·x[t, i]`` modulo 2^32 for j from first to last.

    weights int8 [out, d]; planes [T, bytes] uint8 made by `take_apart`; u uint32.
    """
    count, width = weights.shape
    safe = (count * width - padded) // width + 1 if count * width >= padded else 0
    middle = max(first, min(last, safe))
    if planes.shape[0] == 1 and kept == 8 * PLANES and last - first >= ROWS and has_byte_dots():
        add_one_row(weights, first, last, planes, padded, u, offset)
        return
    if middle > first:
        _add_part(weights, first, middle, offset, planes, padded, kept, u)
    if last > middle:  # there the padding would reach beyond the last row
        rest = np.empty((last - middle, padded), np.int8)
        for j in range(last - middle):
            for i in range(padded):
                rest[j, i] = weights[middle + j, i] if i < width else np.int8(0)
        _add_part(rest, ZERO, last - middle, middle + offset, planes, padded, kept, u)


@jitted()
def _used_bits(rows):  # type: ignore[no-untyped-def]
    """Bits from the top down to the lowest one set in any word."""
    seen = np.uint32(0)
    for t in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            seen |= rows[t, j]
    bits = 32
    while bits > 1 and not seen & np.uint32(1):
        seen >>= np.uint32(1)
        bits -= 1
    return bits


@jitted(nogil=True)
def _multiply(weights, rows, first, last, start, end, bits, out):  # type: ignore[no-untyped-def]
    """`matmul` of the weights from first to last and the rows from start to end."""
    width = rows.shape[1]
    padded, bits = padded_width(width), bits if bits else _used_bits(rows)
    step = rows_at_once(padded)
    words = np.zeros(padded, np.uint32)
    for t in range(start, end, step):
        some = min(step, end - t)
        kept = kept_bits(bits, some)
        planes = new_planes(some, padded, kept)
        for i in range(some):
            for j in range(width):
                words[j] = rows[t + i, j]
            take_apart(words, padded, kept, planes, i)
            for j in range(first, last):
                out[t + i, j] = 0
        add_products(weights, first, last, planes, padded, kept, out[t : t + some], ZERO)


@parallel()
def _multiply_together(weights, rows, threads, out):  # type: ignore[no-untyped-def]
    bits, count, many = _used_bits(rows), weights.shape[0], rows.shape[0]
    by_rows = many >= ROWS_APART * threads
    step = -(-many // threads) if by_rows else -(-count // threads)
    for job in prange(threads):
        start = job * step
        first, end = (0, min(many, start + step)) if by_rows else (start, many)
        last = count if by_rows else min(count, start + step)
        if first < last:
            _multiply(weights, rows, first, last, start if by_rows else 0, end, bits, out)


def matmul(weights: NDArray[np.int8], rows: NDArray[np.uint32], threads: int, out: NDArray[np.uint32]) -> None:
    """``W·x`` modulo 2^32: weights [out, d] int8, rows [T, d] → out [T, out], all in C order.

    One thread is the calling one.
    """
    if not out.size or not rows.size:
        out[:] = 0
    elif threads > 1:
        _multiply_together(weights, rows, threads, out)
    else:
        _multiply(weights, rows, 0, len(weights), 0, len(rows), 0, out)
