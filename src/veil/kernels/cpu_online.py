"""Numba kernels of the online path: bit packing, the wrapping matrix product, encryption and decryption of rows."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from veil.kernels.cpu_int8 import INT8_ROWS, PLANES, byte_dots, has_byte_dots, int8_dots
from veil.kernels.memory import LINE_BYTES

_FEW = 8  # rows that are multiplied one after the other, while a tile of weights is in the cache


@njit(cache=True)
def _pack_fours(values, out, bits):  # type: ignore[no-untyped-def]
    """Four words at a time, each time by itself, where they are 8 to 10 bytes; how many words are packed."""
    if bits % 2 or bits < 16 or bits > 20:
        return 0
    step, up = bits // 2, np.uint64(bits)
    for four in range(values.size // 4):
        at = np.uint64(four * step)
        last = np.uint64(values[4 * four + 3])
        low = np.uint64(values[4 * four]) | np.uint64(values[4 * four + 1]) << up
        low |= np.uint64(values[4 * four + 2]) << (up + up) | last << (up + up + up)
        for byte in range(8):
            out[at + np.uint64(byte)] = np.uint8(low >> np.uint64(8 * byte))
        for byte in range(8, step):
            out[at + np.uint64(byte)] = np.uint8(last >> np.uint64(8 * byte - 3 * bits))
    return values.size // 4 * 4


@njit(cache=True)
def pack_words(values, out, bits):  # type: ignore[no-untyped-def]
    """Little-endian bit packing of words below 2^bits into ``out`` (ceil(count·bits/8) bytes)."""
    first = _pack_fours(values, out, bits)
    buffer, filled, at = np.uint64(0), 0, first * bits // 8
    for j in range(first, values.size):
        buffer |= np.uint64(values[j]) << np.uint64(filled)
        filled += bits
        if filled >= 32:
            for byte in range(4):
                out[at + byte] = np.uint8((buffer >> np.uint64(8 * byte)) & np.uint64(0xFF))
            buffer >>= np.uint64(32)
            filled -= 32
            at += 4
    while filled > 0:
        out[at] = np.uint8(buffer & np.uint64(0xFF))
        buffer >>= np.uint64(8)
        filled -= 8
        at += 1


@njit(cache=True)
def unpack_words(data, out, bits):  # type: ignore[no-untyped-def]
    """Inverse of `pack_words`."""
    buffer, filled, at = np.uint64(0), 0, 0
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for j in range(out.size):
        if filled < bits and at + 4 <= data.size:
            for byte in range(4):
                buffer |= np.uint64(data[at + byte]) << np.uint64(filled + 8 * byte)
            filled += 32
            at += 4
        while filled < bits:
            buffer |= np.uint64(data[at]) << np.uint64(filled)
            filled += 8
            at += 1
        out[j] = np.uint32(buffer & mask)
        buffer >>= np.uint64(bits)
        filled -= bits


@njit(cache=True, parallel=True, nogil=True)
def pack(values, out, bits):  # type: ignore[no-untyped-def]
    """`pack_words` of each row; long rows are cut at multiples of 1024 words, which are whole bytes."""
    rows, count = values.shape
    pieces = max(1, -(-count // 1024))
    for job in prange(rows * pieces):
        t, piece = job // pieces, job % pieces
        pack_words(values[t, piece * 1024 : min(count, (piece + 1) * 1024)], out[t, piece * 128 * bits :], bits)


@njit(cache=True, parallel=True, nogil=True)
def unpack(data, out, bits):  # type: ignore[no-untyped-def]
    """`unpack_words` of each row."""
    rows, count = out.shape
    pieces = max(1, -(-count // 1024))
    for job in prange(rows * pieces):
        t, piece = job // pieces, job % pieces
        unpack_words(data[t, piece * 128 * bits :], out[t, piece * 1024 : min(count, (piece + 1) * 1024)], bits)


@njit(cache=True)
def _dot_2x4(w0, w1, x0, x1, x2, x3):  # type: ignore[no-untyped-def]
    a = b = c = d = e = f = g = h = np.int32(0)
    for i in range(x0.size):
        v, w = np.int32(w0[i]), np.int32(w1[i])
        a = np.int32(a + np.int32(v * x0[i]))
        b = np.int32(b + np.int32(v * x1[i]))
        c = np.int32(c + np.int32(v * x2[i]))
        d = np.int32(d + np.int32(v * x3[i]))
        e = np.int32(e + np.int32(w * x0[i]))
        f = np.int32(f + np.int32(w * x1[i]))
        g = np.int32(g + np.int32(w * x2[i]))
        h = np.int32(h + np.int32(w * x3[i]))
    return a, b, c, d, e, f, g, h


@njit(cache=True)
def _rows_times_one(weights, first, last, x, out):  # type: ignore[no-untyped-def]
    for r in range(first, last, INT8_ROWS):
        start = max(0, min(r, last - INT8_ROWS))
        if start + INT8_ROWS <= weights.shape[0]:
            int8_dots(weights, start, x, out)
            continue
        for row in range(r, last):
            total = np.int32(0)
            for i in range(x.size):
                total = np.int32(total + np.int32(np.int32(weights[row, i]) * x[i]))
            out[row] = np.uint32(total)


@njit(cache=True)
def _rows_times_many(weights, first, last, rows, out):  # type: ignore[no-untyped-def]
    masks = rows.shape[0]
    for t in range(0, masks, 4):
        t1, t2, t3 = min(t + 1, masks - 1), min(t + 2, masks - 1), min(t + 3, masks - 1)
        for r in range(first, last, 2):
            r1 = min(r + 1, last - 1)
            a, b, c, d, e, f, g, h = _dot_2x4(weights[r], weights[r1], rows[t], rows[t1], rows[t2], rows[t3])
            out[t, r] = np.uint32(a)
            out[t1, r] = np.uint32(b)
            out[t2, r] = np.uint32(c)
            out[t3, r] = np.uint32(d)
            out[t, r1] = np.uint32(e)
            out[t1, r1] = np.uint32(f)
            out[t2, r1] = np.uint32(g)
            out[t3, r1] = np.uint32(h)


@njit(cache=True)
def _rows_times(weights, first, last, rows, out):  # type: ignore[no-untyped-def]
    if rows.shape[0] <= _FEW:
        for t in range(rows.shape[0]):
            _rows_times_one(weights, first, last, rows[t], out[t])
    else:
        _rows_times_many(weights, first, last, rows, out)


@njit(cache=True, parallel=True, nogil=True)
def matmul(weights, rows, out):  # type: ignore[no-untyped-def]
    """``W·x`` modulo 2^32: weights [out, d] int8, rows [T, d] int32, out [T, out] uint32."""
    count = weights.shape[0]
    tile = 64 if count >= 256 else 8
    for job in prange(-(-count // tile)):
        first, last = job * tile, min(count, (job + 1) * tile)
        _rows_times(weights, first, last, rows, out)


@njit(cache=True)
def _finish_row(u, h, out, bits):  # type: ignore[no-untyped-def]
    """Results u, which are lost, minus shares, rounded to their top bits and packed."""
    half, down = np.uint32((1 << (32 - bits)) >> 1), np.uint32(32 - bits)
    for j in range(u.size):
        u[j] = np.uint32(np.uint32(u[j] - h[j]) + half) >> down
    pack_words(u, out, bits)


@njit(cache=True)
def _signed_rows(data, width, bits):  # type: ignore[no-untyped-def]
    """Packed rows as words [T, width], the packed bits at their top."""
    rows = np.empty((data.shape[0], width), np.uint32)
    up = np.uint32(32 - bits)
    for t in range(data.shape[0]):
        unpack_words(data[t], rows[t], bits)
        for j in range(width):
            rows[t, j] = rows[t, j] << up
    return rows.view(np.int32)


@njit(cache=True)
def _take_apart(data, first, second, third):  # type: ignore[no-untyped-def]
    for j in range(data.size // PLANES):
        first[j] = data[PLANES * j]
        second[j] = data[PLANES * j + 1]
        third[j] = data[PLANES * j + 2]


@njit(cache=True)
def _byte_planes(data, width, bits):  # type: ignore[no-untyped-def]
    """Packed rows as the top bytes of their words, [T, `PLANES`, width up to whole lines], lowest first; bits ≤ 24."""
    planes = np.zeros((data.shape[0], PLANES, -(-width // LINE_BYTES) * LINE_BYTES), np.uint8)
    if bits == 8 * PLANES:
        for t in range(data.shape[0]):
            _take_apart(data[t], planes[t, 0], planes[t, 1], planes[t, 2])
        return planes
    words = np.empty(width, np.uint32)
    for t in range(data.shape[0]):
        unpack_words(data[t], words, bits)
        for b in range(PLANES):
            for j in range(width):
                planes[t, b, j] = np.uint8((words[j] << np.uint32(8 * PLANES - bits)) >> np.uint32(8 * b))
    return planes


@njit(cache=True)
def _rows_times_planes(weights, first, last, planes, out):  # type: ignore[no-untyped-def]
    if weights.shape[0] < INT8_ROWS:
        for row in range(first, last):
            total = np.uint32(0)
            for i in range(weights.shape[1]):
                weight = np.uint32(np.int32(weights[row, i]))
                for b in range(PLANES):
                    word = np.uint32(planes[b, i]) << np.uint32(8 * (b + 4 - PLANES))
                    total = np.uint32(total + np.uint32(weight * word))
            out[row] = total
        return
    most = weights.shape[0] - INT8_ROWS
    half = (last - first + 2 * INT8_ROWS - 1) // (2 * INT8_ROWS) * INT8_ROWS
    for r in range(first, first + half, INT8_ROWS):
        byte_dots(weights, min(r, most), min(r + half, most), planes, out)


@njit(cache=True)
def _answer_tile(weights, first, last, rows, planes, h, bits, out):  # type: ignore[no-untyped-def]
    base = max(0, min(first, last - INT8_ROWS))  # a visit takes as many rows; some are multiplied twice
    tile = weights[base:last]
    u = np.empty((h.shape[0], last - base), np.uint32)
    for t in range(planes.shape[0]):
        _rows_times_planes(tile, 0, last - base, planes[t], u[t])
    if rows.shape[0]:
        _rows_times(tile, 0, last - base, rows, u)
    for t in range(h.shape[0]):
        _finish_row(u[t, first - base :], h[t, first:last], out[t, first * bits // 8 :], bits)


@njit(cache=True)
def _prepared(data, width, bits):  # type: ignore[no-untyped-def]
    """Packed rows as words or, where the processor multiplies bytes, as planes of bytes; the other has no rows."""
    if has_byte_dots() and bits <= 8 * PLANES:
        return _signed_rows(data[:0], width, bits), _byte_planes(data, width, bits)
    return _signed_rows(data, width, bits), _byte_planes(data[:0], width, bits)


@njit(cache=True)
def _tile_of(masks, count, threads):  # type: ignore[no-untyped-def]
    """Rows of weights in one visit: several masks want them in the cache, one wants long streams, two for each thread."""
    if masks > 1:
        return 64 if count >= 256 else 8
    return -(-count // (threads * 2 * INT8_ROWS)) * 2 * INT8_ROWS


@njit(cache=True, parallel=True, nogil=True)
def answer(data, weights, h, input_bits, result_bits, threads, out):  # type: ignore[no-untyped-def]
    """The server's online step; see `reference.answer`. A tile of output rows goes from weights to bytes in one visit."""
    count = weights.shape[0]
    rows, planes = _prepared(data, weights.shape[1], input_bits)
    tile = _tile_of(len(data), count, threads)
    for job in prange(-(-count // tile)):
        _answer_tile(weights, job * tile, min(count, (job + 1) * tile), rows, planes, h, result_bits, out)


@njit(cache=True, nogil=True)
def answer_serially(data, weights, h, input_bits, result_bits, out):  # type: ignore[no-untyped-def]
    """`answer` on the calling thread alone."""
    count = weights.shape[0]
    rows, planes = _prepared(data, weights.shape[1], input_bits)
    tile = _tile_of(len(data), count, 1)
    for first in range(0, count, tile):
        _answer_tile(weights, first, min(count, first + tile), rows, planes, h, result_bits, out)


@njit(cache=True, nogil=True)
def read_lines(data, first, last):  # type: ignore[no-untyped-def]
    """Read a byte of every cache line, so that it is in the caches afterwards; the bytes' sum, or nothing would be read."""
    total = np.int64(0)
    for i in range(first, last, LINE_BYTES):
        total += np.int64(data[i])
    return total


@njit(cache=True, nogil=True)
def scales(x, target, out):  # type: ignore[no-untyped-def]
    """τ of each row; see `reference.scales`."""
    for t in range(x.shape[0]):
        total = 0.0
        for j in range(x.shape[1]):
            v = np.float64(x[t, j])
            total += v * v
        out[t] = np.nan if total == np.inf else (target / np.sqrt(total) if total != 0.0 else 0.0)


@njit(cache=True)
def _encrypt_row(x, tau, mask, out, bits):  # type: ignore[no-untyped-def]
    half, down = np.uint32((1 << (32 - bits)) >> 1), np.uint32(32 - bits)
    rounded = np.empty(x.size, np.uint32)
    for j in range(x.size):
        message = np.uint32(np.int64(np.rint(np.float64(x[j]) * tau)))
        rounded[j] = np.uint32(np.uint32(message + mask[j]) + half) >> down
    pack_words(rounded, out, bits)


@njit(cache=True, nogil=True)
def encrypt(x, tau, masks, bits, out):  # type: ignore[no-untyped-def]
    """Rows [T, d] to packed bytes; see `reference.encrypt`."""
    for t in range(x.shape[0]):
        _encrypt_row(x[t], tau[t], masks[t], out[t], bits)


@njit(cache=True, nogil=True)
def decrypt(data, mu, bits, out):  # type: ignore[no-untyped-def]
    """Packed results and μ to centred integers; see `reference.decrypt`."""
    up = np.uint32(32 - bits)
    words = np.empty(mu.shape[1], np.uint32)
    for t in range(mu.shape[0]):
        unpack_words(data[t], words, bits)
        for j in range(words.size):
            out[t, j] = np.int32(np.uint32(words[j] << up) - mu[t, j])


@njit(cache=True, parallel=True, nogil=True)
def gaussian(words, cumulative, guide, shift, out):  # type: ignore[no-untyped-def]
    """Rounded Gaussian by inversion; see `reference.gaussian`."""
    for part in prange(-(-words.size // 4096)):
        for j in range(part * 4096, min(words.size, (part + 1) * 4096)):
            u = words[j] >> np.uint64(1)
            v = guide[u >> shift]
            while u >= cumulative[v]:
                v += np.int32(1)
            out[j] = -v if words[j] & np.uint64(1) else v


@njit(cache=True, nogil=True)
def dequantize(values, tau, scale, bias, out):  # type: ignore[no-untyped-def]
    """Integers to floats; see `reference.dequantize`."""
    for t in range(values.shape[0]):
        inverse = 1.0 / tau[t] if tau[t] != 0.0 else 0.0
        for j in range(values.shape[1]):
            out[t, j] = np.float32(np.float64(values[t, j]) * inverse * np.float64(scale[j]) + np.float64(bias[j]))
