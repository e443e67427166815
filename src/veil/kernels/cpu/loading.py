"""Numba kernels that bring hints, public polynomials and secrets to the points and forms that `strips` multiplies."""

from __future__ import annotations

import numpy as np
from numba import prange

from veil.kernels.cpu.kept import jitted
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.strips import montgomery
from veil.kernels.cpu.transform import COLUMNS, forward


@jitted()
def _split(strip, low, high):  # type: ignore[no-untyped-def]
    """Residues of 16 columns into their halves; ``low`` and ``high`` [degree, 16] are views with steps."""
    for point in range(low.shape[0]):
        for j in range(COLUMNS):
            v = strip[point * COLUMNS + j]
            low[point, j] = np.uint16(v & np.uint32(0xFFFF))
            high[point, j] = np.uint8(v >> np.uint32(16))


@parallel()
def fill_hint(rows, low, high, primes, factors):  # type: ignore[no-untyped-def]
    """G of tiles: H [slots, n] int32 → low and high [tiles, 2, N, terms, 16]; factors [2, 2, N]."""
    tiles, degree, terms = low.shape[0], low.shape[2], low.shape[3]
    T = rows.shape[1] // terms
    width = degree // T
    for job in prange(tiles * 2 * terms):
        tile, prime, term = job // (2 * terms), job // terms % 2, job % terms
        p = primes[prime]
        strip = np.zeros(degree * COLUMNS, np.uint32)
        for column in range(COLUMNS):
            for j in range(width):
                slot = (tile * COLUMNS + column) * width + j
                if slot < rows.shape[0]:
                    for t in range(T):
                        v = rows[slot, term * T + t]
                        strip[(t * width + j) * COLUMNS + column] = np.uint32(v + (np.int32(p) if v < 0 else np.int32(0)))
        forward(strip, factors[prime], p)
        _split(strip, low[tile, prime, :, term], high[tile, prime, :, term])


@jitted()
def _residues(words, p, inverse, strip):  # type: ignore[no-untyped-def]
    """Words int32 modulo p, at least 2^10, into a column of a strip. Where p divides, the quotient may be one too low:
    elsewhere it is further from an integer than ``2^21·2^-52``.
    """
    for x in range(words.size):
        quotient = np.int32(np.floor(np.float64(words[x]) * inverse))
        rest = np.int32(words[x] - np.int32(quotient * p))
        strip[x * COLUMNS] = np.uint32(rest - p if rest >= p else rest)


@parallel()
def load_inner(a, low, high, primes, factors):  # type: ignore[no-untyped-def]
    """Inner polynomials [elements, k, m] int32 → low and high [tiles, 2, m, k, 16]; factors [2, 2, m]."""
    tiles, degree, terms = low.shape[0], low.shape[2], low.shape[3]
    for job in prange(tiles * 2 * terms):
        tile, prime, term = job // (2 * terms), job // terms % 2, job % terms
        p = primes[prime]
        strip = np.zeros(degree * COLUMNS, np.uint32)
        for column in range(min(COLUMNS, a.shape[0] - tile * COLUMNS)):
            _residues(a[tile * COLUMNS + column, term], np.int32(p), 1.0 / np.float64(p), strip[column:])
        forward(strip, factors[prime], p)
        _split(strip, low[tile, prime, :, term], high[tile, prime, :, term])


@parallel()
def load_public(table, p, factors, bits, points):  # type: ignore[no-untyped-def]
    """a' [T, slots] of words → points [tiles, N·16] modulo p."""
    rows, degree = table.shape[0], points.shape[1] // COLUMNS
    width, top = degree // rows, np.uint32(1) << np.uint32(bits - 1)
    for tile in prange(points.shape[0]):
        strip = points[tile]
        strip[:] = 0
        for column in range(min(COLUMNS, (table.shape[1] - tile * COLUMNS * width) // width)):
            for t in range(rows):
                for j in range(width):
                    v = table[t, (tile * COLUMNS + column) * width + j]
                    strip[(t * width + j) * COLUMNS + column] = v + p - (top + top) if v >= top else v
        forward(strip, factors, p)


@parallel()
def load_batches(values, out, primes, negatives, squares):  # type: ignore[no-untyped-def]
    """Points [B, terms, 2, degree] → [B, 2, degree, terms] in Montgomery form; ``squares`` are 2^64 mod p."""
    count, terms, degree = values.shape[0], values.shape[1], values.shape[3]
    for job in prange(count * 2):
        b, prime = job // 2, job % 2
        p, pn, square = primes[prime], negatives[prime], np.uint64(squares[prime])
        for term in range(terms):
            for point in range(degree):
                v = montgomery(np.uint64(values[b, term, prime, point]) * square, p, pn)
                out[b, prime, point, term] = min(v, np.uint32(v - p))


@parallel()
def small_ntt(values, out, p, factors):  # type: ignore[no-untyped-def]
    """Small signed polynomials [16·tiles, degree] int64, |v| < p → flat strips [tiles, degree·16] of points below p."""
    degree = values.shape[1]
    for tile in prange(out.shape[0]):
        strip = out[tile]
        for column in range(COLUMNS):
            for x in range(degree):
                v = values[tile * COLUMNS + column, x]
                strip[x * COLUMNS + column] = np.uint32(v + (np.int64(p) if v < 0 else np.int64(0)))
        forward(strip, factors, p)
