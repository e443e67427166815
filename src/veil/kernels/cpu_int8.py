"""The inner loop of the online product of one row, as LLVM vectors: it reads int8 weights as fast as memory gives them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from veil.kernels.cpu_vector import I32, I64, Loop, array, declare, load, plus, prefetch, vector_code

INT8_ROWS = 8
"""Rows of weights that one visit multiplies; it asks for the next eight."""
_WORDS = 16
_LINE_BYTES = 64


@vector_code
def int8_dots(typing_context, weights, first, x, out):  # type: ignore[no-untyped-def]
    """``out[first + r] = Σ_i weights[first + r, i]·x[i]`` modulo 2^32 for `INT8_ROWS` rows of int8; x int32, out uint32."""
    kind, small = ir.VectorType(I32, _WORDS), ir.VectorType(ir.IntType(8), _WORDS)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weights, x, out = (array(context, builder, signature, args, place) for place in (0, 2, 3))
        width = builder.extract_value(weights.shape, 1)
        starts = [builder.gep(weights.data, [builder.mul(plus(builder, args[1], r), width)]) for r in range(INT8_ROWS)]
        whole = builder.and_(width, I64(-_LINE_BYTES))
        with Loop(builder, whole, _LINE_BYTES, [kind] * INT8_ROWS) as loop:
            for step in range(0, _LINE_BYTES, _WORDS):
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
