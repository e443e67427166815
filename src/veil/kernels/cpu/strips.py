"""Numba kernels of everything offline: sums of products at each point, transforms, and what is made of the results.

The hint and the public polynomials are kept as residues of three bytes, split into halves: ``low`` uint16 and ``high``
uint8, each [tiles, 2, degree, terms, 16], read once and in order. A *tile* is a strip of 16 blocks, or of 16 inner ring
elements. What multiplies them is in Montgomery form (``b·2^32 mod p``), so one reduction of a 64-bit sum gives the residue.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types

from veil.kernels.cpu.kept import jitted
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.transform import COLUMNS, inverse
from veil.kernels.cpu.vector import (
    I32,
    I64,
    Builder,
    Context,
    Loop,
    Signature,
    Value,
    Values,
    array,
    constant,
    load,
    plus,
    splat,
    store,
    transposed,
    vector_code,
)

_UNROLLED = 4
_SQUARE = 8


@jitted(inline="always")
def montgomery(value, p, negative_inverse):  # type: ignore[no-untyped-def]
    """``value·2^-32`` modulo p, below ``value/2^32 + p``."""
    m = np.uint32(np.uint32(value) * negative_inverse)
    return np.uint32((value + np.uint64(m) * np.uint64(p)) >> np.uint64(32))


@vector_code
def term_sums(typing_context, low, high, place, factors, first, terms, out, out_place, p, pn):  # type: ignore[no-untyped-def]
    """``out[j] = Σ_v (low + 2^16·high)[v, j]·factors[v]·2^-32`` modulo p, below 2p, for 16 columns j.

    ``low`` and ``high`` are read from word ``place``, 16 for each term; factors from ``first``; sums stay below 2^63.
    """

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        low, high, factors, out = (array(context, builder, signature, args, at) for at in (0, 1, 3, 6))
        words, sums = ir.VectorType(I32, COLUMNS), ir.VectorType(I64, COLUMNS // 2)
        small, byte = ir.VectorType(ir.IntType(16), COLUMNS), ir.VectorType(ir.IntType(8), COLUMNS)
        mask = constant(sums, 0xFFFFFFFF)

        def add_term(values: list[Value], term: Value) -> list[Value]:
            at = builder.add(args[2], builder.mul(term, I64(COLUMNS)))
            lower16 = builder.load(builder.bitcast(builder.gep(low.data, [at]), small.as_pointer()), align=2)
            upper8 = builder.load(builder.bitcast(builder.gep(high.data, [at]), byte.as_pointer()), align=1)
            upper = builder.shl(builder.zext(upper8, words), constant(words, 16))
            pairs = builder.bitcast(builder.or_(builder.zext(lower16, words), upper), sums)
            factor = builder.zext(builder.load(builder.gep(factors.data, [builder.add(args[4], term)])), I64)
            wide = splat(builder, factor, sums)
            even = builder.mul(builder.and_(pairs, mask), wide)
            odd = builder.mul(builder.lshr(pairs, constant(sums, 32)), wide)
            return [builder.add(values[0], even), builder.add(values[1], odd)]

        whole = builder.and_(args[5], I64(-_UNROLLED))
        with Loop(builder, whole, _UNROLLED, [sums, sums]) as loop:
            for step in range(_UNROLLED):
                loop.values = add_term(loop.values, plus(builder, loop.index, step))
        with Loop(builder, builder.sub(args[5], whole), 1, [sums, sums], loop.values) as loop:
            loop.values = add_term(loop.values, builder.add(whole, loop.index))
        prime = splat(builder, builder.zext(args[8], I64), sums)
        inverse_of = splat(builder, builder.zext(args[9], I64), sums)
        halves = []
        for total in loop.values:
            factor = builder.and_(builder.mul(builder.and_(total, mask), inverse_of), mask)
            halves.append(builder.lshr(builder.add(total, builder.mul(factor, prime)), constant(sums, 32)))
        both = builder.or_(halves[0], builder.shl(halves[1], constant(sums, 32)))
        store(builder, builder.gep(out.data, [args[7]]), builder.bitcast(both, words))
        return context.get_dummy_value()

    size = types.intp
    return types.void(low, high, size, factors, size, size, out, size, types.uint32, types.uint32), code


@jitted()
def _sums_in_ntt_domain(low, high, tile, prime, factors, strip, p, pn):  # type: ignore[no-untyped-def]
    """All points of one tile and prime, for one batch: factors [2, degree, terms] → flat strip [degree·16]."""
    degree, terms = low.shape[2], low.shape[3]
    flat_low, flat_high, flat = low.reshape(low.size), high.reshape(high.size), factors.reshape(factors.size)
    start = (tile * 2 + prime) * degree
    for point in range(degree):
        place, first = (start + point) * terms * COLUMNS, (prime * degree + point) * terms
        term_sums(flat_low, flat_high, place, flat, first, terms, strip, point * COLUMNS, p, pn)


@jitted()
def _sums_of_batches(low, high, tile, prime, batches, strips, p, pn):  # type: ignore[no-untyped-def]
    """`_sums_in_ntt_domain` for batches [B, 2, degree, terms] → strips [B, 2, degree·16]: G comes from memory once."""
    degree, terms, count = low.shape[2], low.shape[3], batches.shape[0]
    flat_low, flat_high, flat = low.reshape(low.size), high.reshape(high.size), batches.reshape(batches.size)
    out = strips.reshape(strips.size)
    start = (tile * 2 + prime) * degree
    for point in range(degree):
        place = (start + point) * terms * COLUMNS
        for b in range(count):
            first = ((b * 2 + prime) * degree + point) * terms
            out_place = ((b * 2 + prime) * degree + point) * COLUMNS
            term_sums(flat_low, flat_high, place, flat, first, terms, out, out_place, p, pn)


@vector_code
def _turn(typing_context, words, at, out, start, step):  # type: ignore[no-untyped-def]
    """A square of 8 × 8 words, rows 16 apart in ``words`` from ``at`` on, transposed into rows ``step`` apart in ``out``."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        words, out = array(context, builder, signature, args, 0), array(context, builder, signature, args, 2)
        kind = ir.VectorType(I32, _SQUARE)
        places = [plus(builder, args[1], COLUMNS * row) for row in range(_SQUARE)]
        rows = transposed(builder, [load(builder, builder.gep(words.data, [place]), kind) for place in places])
        for row, values in enumerate(rows):
            place = builder.add(args[3], builder.mul(args[4], I64(row)))
            builder.store(values, builder.bitcast(builder.gep(out.data, [place]), kind.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(words, types.intp, out, types.intp, types.intp), code


@jitted()
def _transposed_out(words, out, first, width):  # type: ignore[no-untyped-def]
    """Flat words [width, 16] → out[first + column·width + j]; what lies beyond ``out`` is dropped."""
    if width % _SQUARE == 0 and first + COLUMNS * width <= out.size:
        for column in range(0, COLUMNS, _SQUARE):
            for j in range(0, width, _SQUARE):
                _turn(words, j * COLUMNS + column, out, first + column * width + j, width)
        return
    for column in range(min(COLUMNS, -(-(out.size - first) // width))):
        start = first + column * width
        for j in range(min(width, out.size - start)):
            out[start + j] = words[j * COLUMNS + column]


@jitted()
def _switch(first, second, words, f1, f2, half, down, mask):  # type: ignore[no-untyped-def]
    for j in range(words.size):
        total = np.uint64(first[j]) * f1 + np.uint64(second[j]) * f2 + half
        words[j] = np.uint32((total >> down) & mask)


@parallel()
def prepare(low, high, batches, primes, negatives, factors1, factors2, fractions, bits, out):  # type: ignore[no-untyped-def]
    """``round(D·2^bits/Q)`` of B batches [B, 2, N, terms] (Montgomery form) → out [B, T, slots].

    The factors' last entries hold ``crt_i / N``, so that the inverse transforms give what the fractions multiply.
    """
    count, degree, rows = batches.shape[0], low.shape[2], out.shape[1]
    width = degree // rows
    f1, f2 = fractions[0], fractions[1]
    half, down = np.uint64(1) << np.uint64(53 - bits), np.uint64(54 - bits)
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for tile in prange(low.shape[0]):
        strips = np.empty((count, 2, degree * COLUMNS), np.uint32)
        words = np.empty(width * COLUMNS, np.uint32)
        _sums_of_batches(low, high, tile, 0, batches, strips, primes[0], negatives[0])
        _sums_of_batches(low, high, tile, 1, batches, strips, primes[1], negatives[1])
        for b in range(count):
            inverse(strips[b, 0], factors1, primes[0])
            inverse(strips[b, 1], factors2, primes[1])
            for t in range(rows):
                start, stop = t * words.size, (t + 1) * words.size
                _switch(strips[b, 0, start:stop], strips[b, 1, start:stop], words, f1, f2, half, down, mask)
                _transposed_out(words, out[b, t], tile * COLUMNS * width, width)


@jitted()
def _lift(first, second, factor, companion, p1, p2, words):  # type: ignore[no-untyped-def]
    """``words`` = the integers nearest zero modulo 2^32, from residues and ``second·p1^-1``; see `reference.lifted`."""
    whole, half = np.uint32(np.uint64(p1) * np.uint64(p2)), np.uint32(p2 // np.uint32(2))
    for j in range(words.size):
        x = first[j]
        quotient = np.uint32((np.uint64(x) * np.uint64(companion)) >> np.uint64(32))
        v = np.uint32(np.uint32(x * factor) - np.uint32(quotient * p2))
        v = min(v, np.uint32(v - p2))
        d = np.uint32(second[j] - v)
        d = min(d, np.uint32(d + p2))
        words[j] = np.uint32(np.uint32(x + np.uint32(p1 * d)) - (whole if d > half else np.uint32(0)))


@jitted()
def _add_errors(out, errors):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = np.uint32(out[j] + np.uint32(np.int32(errors[j])))


@parallel()
def pads(low, high, secret, errors, primes, negatives, factors1, factors2, shoup, out):  # type: ignore[no-untyped-def]
    """``A·s + e``: secret [2, m, k] (Montgomery form), errors int8 and out uint32 [T, elements·r]; see `Kernels.pads`.

    The factors' last entries hold ``1/m`` and ``p1^-1/m``; ``shoup`` is ``p1^-1 mod p2`` and its companion.
    """
    degree, rows = low.shape[2], out.shape[0]
    width = degree // rows
    for tile in prange(low.shape[0]):
        strips = np.empty((2, degree * COLUMNS), np.uint32)
        words = np.empty(width * COLUMNS, np.uint32)
        for prime in range(2):
            _sums_in_ntt_domain(low, high, tile, prime, secret, strips[prime], primes[prime], negatives[prime])
        inverse(strips[0], factors1, primes[0])
        inverse(strips[1], factors2, primes[1])
        begin = tile * COLUMNS * width
        end = min(out.shape[1], begin + COLUMNS * width)
        for t in range(rows):
            start, stop = t * words.size, (t + 1) * words.size
            _lift(strips[0, start:stop], strips[1, start:stop], shoup[0], shoup[1], primes[0], primes[1], words)
            _transposed_out(words, out[t], begin, width)
            _add_errors(out[t, begin:end], errors[t, begin:end])


@jitted()
def _times_factors(points, factors, strip, p, pn):  # type: ignore[no-untyped-def]
    """``strip[point, j] = points[point, j]·factors[point]·2^-32`` modulo p, below 2p; all flat but the factors."""
    for point in range(factors.size):
        factor, start = np.uint64(factors[point]), point * COLUMNS
        for j in range(start, start + COLUMNS):
            strip[j] = montgomery(np.uint64(points[j]) * factor, p, pn)


@jitted()
def _low_bits(values, words, p, up):  # type: ignore[no-untyped-def]
    """Residues as integers nearest zero, shifted up: their lowest bits become the top ones."""
    half = np.uint32(p // np.uint32(2))
    for j in range(words.size):
        v = values[j]
        words[j] = np.uint32(np.uint32(v - (p if v > half else np.uint32(0))) << up)


@parallel()
def shares(points, secret, p, pn, factors, bits, out):  # type: ignore[no-untyped-def]
    """μ: points of a' [tiles, N·16], z's points [N] (Montgomery form) → out [T, slots]; see `Kernels.shares`."""
    rows, degree = out.shape[0], secret.size
    width, up = degree // rows, np.uint32(32 - bits)
    for tile in prange(points.shape[0]):
        strip = np.empty(degree * COLUMNS, np.uint32)
        words = np.empty(width * COLUMNS, np.uint32)
        _times_factors(points[tile], secret, strip, p, pn)
        inverse(strip, factors, p)
        for t in range(rows):
            _low_bits(strip[t * words.size : (t + 1) * words.size], words, p, up)
            _transposed_out(words, out[t], tile * COLUMNS * width, width)
