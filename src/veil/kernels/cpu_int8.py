"""The inner loops of the online product of one row, as LLVM vectors: they read int8 weights as fast as memory gives them.

Where the processor has AVX-512's byte products (VNNI), the words of a row are taken apart into planes of bytes: for
``x = Σ_b 2^(8b)·x_b`` is ``Σ_i w_i·x_i = Σ_b 2^(8b)·(Σ_i w_i·x_bi)`` modulo 2^32, and one instruction multiplies 64
weights with 64 bytes and adds, where words want 12 (widen, multiply, add, four times).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from veil.kernels.cpu_vector import I32, I64, Loop, array, constant, declare, load, plus, prefetch, splat, vector_code
from veil.kernels.memory import LINE_BYTES

INT8_ROWS = 8
"""Rows of weights that one visit multiplies; `int8_dots` asks for the next eight."""
PLANES = 3
"""Bytes of a word in the byte products: inputs have 24 bits or fewer."""
AHEAD_BYTES = (4096, 1536)
"""How far ahead memory is asked for; what the first asks for may be dropped when too much is on its way."""
_WORDS = 16


@vector_code
def has_byte_dots(typing_context):  # type: ignore[no-untyped-def]
    """Whether `byte_dots` may be called on this machine."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), _byte_products(context))

    return types.boolean(), code


def _byte_products(context: Any) -> bool:
    return "+avx512vnni" in context.codegen().magic_tuple()[2]


@vector_code
def byte_dots(typing_context, weights, first, second, planes, out):  # type: ignore[no-untyped-def]
    """``out[r] = Σ_b 2^(8b + 8)·Σ_i weights[r, i]·planes[b, i]`` modulo 2^32 for `INT8_ROWS` rows from two places.

    weights int8; planes [`PLANES`, width up to whole lines] uint8, a word's upper bytes, zero beyond the width; out uint32.
    Two streams through memory at once, which a core reads faster than one.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _byte_products(context):
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

        def ahead(place: Any) -> Any:
            for distance in AHEAD_BYTES:
                prefetch(builder, builder.gep(place, [I64(distance)]))
            return _read(builder, place, small)

        def rest_of(place: Any) -> Any:
            place = builder.bitcast(place, small.as_pointer())
            return builder.call(masked, [place, I32(1), inside, ir.Constant(small, None)])

        def visit(loop: Loop, i: Any, starts: list[Any], read: Callable[[Any], Any]) -> None:
            bytes_of = [builder.gep(planes.data, [builder.add(builder.mul(padded, I64(b)), i)]) for b in range(PLANES)]
            factors = [builder.bitcast(_read(builder, place, small), sums) for place in bytes_of]
            for r, start in enumerate(starts):
                row = builder.bitcast(read(builder.gep(start, [i])), sums)
                for b, factor in enumerate(factors):
                    loop.values[r * PLANES + b] = builder.call(multiply, [loop.values[r * PLANES + b], factor, row])

        room = cgutils.alloca_once(builder, sums, size=2 * INT8_ROWS)  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, I64(INT8_ROWS)) as row:
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
                builder.store(total, builder.gep(room, [plus(builder, row.index, which * INT8_ROWS)]))
        for which, first in enumerate(args[1:3]):
            totals = [builder.load(builder.gep(room, [I64(which * INT8_ROWS + r)])) for r in range(INT8_ROWS)]
            summed = _sums_across(builder, totals)
            summed = builder.shl(summed, constant(summed.type, 32 - 8 * PLANES))
            place = builder.gep(out.data, [first])
            builder.store(summed, builder.bitcast(place, summed.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(weights, types.intp, types.intp, planes, out), code


def _read(builder: Any, place: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=1)


def _sums_across(builder: Any, vectors: list[Any]) -> Any:
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


@vector_code
def int8_dots(typing_context, weights, first, x, out):  # type: ignore[no-untyped-def]
    """``out[first + r] = Σ_i weights[first + r, i]·x[i]`` modulo 2^32 for `INT8_ROWS` rows of int8; x int32, out uint32."""
    kind, small = ir.VectorType(I32, _WORDS), ir.VectorType(ir.IntType(8), _WORDS)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weights, x, out = (array(context, builder, signature, args, place) for place in (0, 2, 3))
        width = builder.extract_value(weights.shape, 1)
        starts = [builder.gep(weights.data, [builder.mul(plus(builder, args[1], r), width)]) for r in range(INT8_ROWS)]
        whole = builder.and_(width, I64(-LINE_BYTES))
        with Loop(builder, whole, LINE_BYTES, [kind] * INT8_ROWS) as loop:
            for step in range(0, LINE_BYTES, _WORDS):
                i = plus(builder, loop.index, step)
                factors = load(builder, builder.gep(x.data, [i]), kind)
                for r, start in enumerate(starts):
                    place = builder.gep(start, [i])
                    if step == 0:
                        prefetch(builder, builder.gep(place, [builder.mul(width, I64(INT8_ROWS))]))
                    row = builder.load(builder.bitcast(place, small.as_pointer()), align=1)
                    loop.values[r] = builder.add(loop.values[r], builder.mul(builder.sext(row, kind), factors))
        reduce = declare(builder, f"llvm.vector.reduce.add.v{_WORDS}i32", I32, [kind])
        totals = [builder.call(reduce, [total]) for total in loop.values]
        with Loop(builder, builder.sub(width, whole), 1, [I32] * INT8_ROWS) as rest:
            i = builder.add(whole, rest.index)
            factor = builder.load(builder.gep(x.data, [i]))
            for r, start in enumerate(starts):
                row = builder.sext(builder.load(builder.gep(start, [i])), I32)
                rest.values[r] = builder.add(rest.values[r], builder.mul(row, factor))
        for r, (total, more) in enumerate(zip(totals, rest.values, strict=True)):
            builder.store(builder.add(total, more), builder.gep(out.data, [plus(builder, args[1], r)]))
        return context.get_dummy_value()

    return types.void(weights, types.intp, x, out), code
