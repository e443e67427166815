"""One row of words with AVX-512's byte products (VNNI): the inner loop that reads int8 weights as fast as memory gives them.

For ``x = Σ_b 2^(8b)·x_b`` is ``Σ_i w_i·x_i = Σ_b 2^(8b)·(Σ_i w_i·x_bi)`` modulo 2^32, and one instruction multiplies 64
weights with 64 bytes and adds. All three planes of bytes meet a weight while it is in a register; in `dots` they come one
after the other, which is better for more rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from veil.kernels.cpu.dots import OFFLINE_BYTES
from veil.kernels.cpu.kept import jitted
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
    declare,
    has_feature,
    plus,
    prefetch,
    read,
    splat,
    vector_code,
)
from veil.kernels.memory import LINE_BYTES

ROWS = 8
"""Rows of weights that one visit multiplies from each of two places."""
PLANES = 3
"""Bytes of a word that count."""
_WORDS = 16


@vector_code
def has_byte_dots(typing_context):  # type: ignore[no-untyped-def]
    """Whether `byte_dots` may be called on this machine."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        return ir.Constant(ir.IntType(1), has_feature(context, "avx512vnni"))

    return types.boolean(), code


@vector_code
def byte_dots(typing_context, weights, first, second, planes, out):  # type: ignore[no-untyped-def]
    """``out[r] = Σ_b 2^(8b + 8)·Σ_i weights[r, i]·planes[b, i]`` modulo 2^32 for `ROWS` rows from two places.

    weights int8; planes [`PLANES`, width up to whole lines] uint8, a word's upper bytes, zero beyond the width; out uint32.
    Two streams through memory at once, which a core reads faster than one.
    """

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        if not has_feature(context, "avx512vnni"):
            return context.get_dummy_value()
        weights, planes, out = (array(context, builder, signature, args, place) for place in (0, 3, 4))
        width, padded = builder.extract_value(weights.shape, 1), builder.extract_value(planes.shape, 1)
        whole = builder.and_(width, I64(-LINE_BYTES))
        left = builder.sub(width, whole)
        sums, small = ir.VectorType(I32, _WORDS), ir.VectorType(ir.IntType(8), LINE_BYTES)
        multiply = declare(builder, "llvm.x86.avx512.vpdpbusd.512", sums, [sums] * 3)
        lane = ir.Constant(small, list(range(LINE_BYTES)))
        inside = builder.icmp_unsigned("<", lane, splat(builder, builder.trunc(left, ir.IntType(8)), small))
        masked = declare(builder, "llvm.masked.load.v64i8.p0", small, [small.as_pointer(), I32, inside.type, small])

        def ahead(place: Value) -> Value:
            for distance in OFFLINE_BYTES:
                prefetch(builder, builder.gep(place, [I64(distance)]))
            return read(builder, place, small)

        def rest_of(place: Value) -> Value:
            place = builder.bitcast(place, small.as_pointer())
            return builder.call(masked, [place, I32(1), inside, ir.Constant(small, None)])

        def visit(loop: Loop, i: Value, starts: list[Value], weights_at: Callable[[Value], Value]) -> None:
            bytes_of = [builder.gep(planes.data, [builder.add(builder.mul(padded, I64(b)), i)]) for b in range(PLANES)]
            factors = [builder.bitcast(read(builder, place, small), sums) for place in bytes_of]
            for r, start in enumerate(starts):
                row = builder.bitcast(weights_at(builder.gep(start, [i])), sums)
                for b, factor in enumerate(factors):
                    loop.values[r * PLANES + b] = builder.call(multiply, [loop.values[r * PLANES + b], factor, row])

        room = cgutils.alloca_once(builder, sums, size=2 * ROWS)  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, I64(ROWS)) as row:
            places = [builder.mul(builder.add(first, row.index), width) for first in args[1:3]]
            starts = [builder.gep(weights.data, [place]) for place in places]
            with Loop(builder, whole, LINE_BYTES, [sums] * (2 * PLANES)) as loop:
                visit(loop, loop.index, starts, ahead)
            with Loop(builder, left, LINE_BYTES, [sums] * (2 * PLANES)) as rest:
                visit(rest, whole, starts, rest_of)
            parts = [builder.add(one, more) for one, more in zip(loop.values, rest.values, strict=True)]
            for which in range(2):
                total = parts[which * PLANES]
                for b in range(1, PLANES):
                    total = builder.add(total, builder.shl(parts[which * PLANES + b], constant(sums, 8 * b)))
                builder.store(total, builder.gep(room, [plus(builder, row.index, which * ROWS)]))
        for which, first in enumerate(args[1:3]):
            totals = [builder.load(builder.gep(room, [I64(which * ROWS + r)])) for r in range(ROWS)]
            summed = _sums_across(builder, totals)
            summed = builder.shl(summed, constant(summed.type, 32 - 8 * PLANES))
            place = builder.gep(out.data, [first])
            builder.store(summed, builder.bitcast(place, summed.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(weights, types.intp, types.intp, planes, out), code


def _sums_across(builder: Builder, vectors: list[Value]) -> Value:
    """The sum of each vector's lanes, in one vector: neighbours are added until one lane is left of each."""
    size, kept = vectors[0].type.count, vectors[0].type.count
    while kept > 1:
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        vectors = []
        for pair in pairs:
            other = pair[1] if len(pair) == 2 else pair[0]
            lanes = [range(odd, size * len(pair), 2) for odd in (0, 1)]
            even, odd = (
                builder.shuffle_vector(pair[0], other, ir.Constant(ir.VectorType(I32, len(order)), list(order)))
                for order in lanes
            )
            vectors.append(builder.add(even, odd))
        size, kept = vectors[0].type.count, kept // 2
    return vectors[0]


@jitted()
def add_one_row(weights, first, last, planes, padded, u, offset):  # type: ignore[no-untyped-def]
    """`product.add_products` for one row whose planes keep 24 bits, and `ROWS` rows of weights or more."""
    tile, most = weights[first:last], last - first - ROWS
    half = (last - first + 2 * ROWS - 1) // (2 * ROWS) * ROWS
    digits, sums = planes[0, : PLANES * padded].reshape(PLANES, padded), np.empty(last - first, np.uint32)
    for j in range(0, half, ROWS):
        byte_dots(tile, min(j, most), min(j + half, most), digits, sums)
    for j in range(sums.size):
        u[0, first + offset + j] += sums[j]
