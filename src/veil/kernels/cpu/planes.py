"""How the words of a row are laid out for `dots`: in planes of digits.

Modulo 2^32 a word is the sum of its digits, and digits are what processors multiply fastest. How a row's words are laid out
(its *planes*) depends on the machine's `form`, and on ``kept``, how many top bits of the words are used:

- `BYTES`, where the processor multiplies bytes with int8 (VNNI): a plane of bytes for each 8 kept bits, lowest first.
- `PAIRS`, elsewhere with AVX2: a plane of signed 16-bit digits (``vpmaddwd``). Above it, with 23 bits kept, one of 7-bit
  digits: they count modulo 2^7 only, and two products of 7-bit digits fit 16 bits (``vpmaddubsw``, twice as many at once).
  With 32 bits kept, a second plane of 16-bit digits.
- `WORDS`, on any other machine: the words themselves.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

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
    has_feature,
    read,
    splat,
    vector_code,
)

WORDS, PAIRS, BYTES = 0, 1, 2
STEP = 64
"""Words that the loops take in one turn; planes are padded with zeros to whole turns."""
_I8, _I16 = ir.IntType(8), ir.IntType(16)


def form_of(context: Context) -> int:
    """`form` for the machine that code is made for."""
    if has_feature(context, "avx512vnni") or has_feature(context, "avxvnni"):
        return BYTES
    return PAIRS if has_feature(context, "avx2") else WORDS


@vector_code
def take_apart(typing_context, words, padded, kept, planes, t):  # type: ignore[no-untyped-def]
    """Row t of planes [rows, bytes] from words [``padded``] uint32, the bits that count at their top."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        words, planes = (array(context, builder, signature, args, place) for place in (0, 3))
        _, padded, kept, _, t = args
        row = builder.gep(planes.data, [builder.mul(t, builder.extract_value(planes.shape, 1))])
        kind = ir.VectorType(I32, 16)
        with Loop(builder, padded, kind.count, []) as loop:
            x = read(builder, builder.gep(words.data, [loop.index]), kind)
            shape, double = form_of(context), builder.shl(loop.index, I64(1))
            if shape == WORDS:
                _put(builder, row, builder.shl(loop.index, I64(2)), x)
            elif shape == BYTES:
                planes_of = builder.lshr(kept, I64(3))
                with Loop(builder, planes_of, 1, []) as each:
                    down = builder.sub(I64(32), builder.shl(builder.sub(planes_of, each.index), I64(3)))
                    digit = builder.lshr(x, splat(builder, builder.trunc(down, I32), kind))
                    place = builder.add(builder.mul(padded, each.index), loop.index)
                    _put(builder, row, place, builder.trunc(digit, ir.VectorType(_I8, kind.count)))
            else:
                x = builder.lshr(x, splat(builder, builder.trunc(builder.sub(I64(32), kept), I32), kind))
                halves = ir.VectorType(_I16, kind.count)
                _put(builder, row, double, builder.trunc(x, halves))
                above = builder.lshr(builder.add(x, constant(kind, 1 << 15)), constant(kind, 16))
                high = builder.shl(padded, I64(1))
                with builder.if_then(builder.icmp_signed("==", kept, I64(23))):
                    digits = builder.and_(above, constant(kind, 127))
                    digits = builder.trunc(digits, ir.VectorType(_I8, kind.count))
                    _put(builder, row, builder.add(high, loop.index), digits)
                with builder.if_then(builder.icmp_signed("==", kept, I64(32))):
                    _put(builder, row, builder.add(high, double), builder.trunc(above, halves))
        return context.get_dummy_value()

    return types.void(words, types.intp, types.intp, planes, types.intp), code


def _put(builder: Builder, row: Value, offset: Value, values: Value) -> None:
    place = builder.gep(row, [offset])
    builder.store(values, builder.bitcast(place, values.type.as_pointer()), align=1)


@vector_code
def form(typing_context):  # type: ignore[no-untyped-def]
    """How this machine's planes are laid out: `WORDS`, `PAIRS` or `BYTES`."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        return I64(form_of(context))

    return types.intp(), code
