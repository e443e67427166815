"""The inner loop of a row's check: rows of 16-bit sums with the quantized row, and the signs with the results.

LLVM makes 32-bit products of 16-bit ones by itself, at a quarter of the pace.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

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
    vector_code,
)

STEP = 32
"""Words of a turn: a row's halves are padded with zeros to whole turns."""
TOGETHER = 6
"""Rows of sums of one visit: as many as the registers hold both halves' sums of."""
LANES = 16
"""Digits of a vector."""
AHEAD_BYTES = 4096
"""How far before they are read the sums are asked for."""
I16 = NDArray[np.int16]
_I16 = ir.IntType(16)
_DIGITS, _WORDS = ir.VectorType(_I16, 16), ir.VectorType(I32, 8)


def _pair_products(context: Context, builder: Builder, a: Value, b: Value) -> Value:
    """Sixteen products of signed 16-bit numbers, neighbours added: eight words."""
    if has_feature(context, "avx2"):
        return builder.call(declare(builder, "llvm.x86.avx2.pmadd.wd", _WORDS, [_DIGITS] * 2), [a, b])
    halves = []
    for odd in (0, 1):
        order = ir.Constant(_WORDS, list(range(odd, 16, 2)))
        parts = [builder.sext(builder.shuffle_vector(each, each, order), _WORDS) for each in (a, b)]
        halves.append(builder.mul(*parts))
    return builder.add(*halves)


def _across(builder: Builder, vector: Value) -> Value:
    """The sum of the eight words."""
    for half in (4, 2, 1):
        low, high = (ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half))
        vector = builder.add(builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high))
    return builder.extract_element(vector, I32(0))


@vector_code
def _halves_of(typing_context, words, halves, count):  # type: ignore[no-untyped-def]
    """`take_halves` of the first ``count`` words, a multiple of 16."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        words, halves = (array(context, builder, signature, args, place) for place in (0, 1))
        middle = builder.gep(halves.data, [builder.lshr(builder.extract_value(halves.shape, 0), I64(1))])
        wide = ir.VectorType(I32, 16)
        with Loop(builder, args[2], 16, []) as loop:
            word = read(builder, builder.gep(words.data, [loop.index]), wide)
            upper = builder.lshr(builder.add(word, constant(wide, 0x8000)), constant(wide, 16))
            for target, value in ((halves.data, word), (middle, upper)):
                place = builder.bitcast(builder.gep(target, [loop.index]), _DIGITS.as_pointer())
                builder.store(builder.trunc(value, _DIGITS), place, align=2)
        return context.get_dummy_value()

    return types.void(words, halves, types.intp), code


def halves_of(width: int) -> int:
    """How many halves `take_halves` makes of a row of this width."""
    return 2 * (-(-width // STEP) * STEP)


@jitted()
def take_halves(words, halves):  # type: ignore[no-untyped-def]
    """Words modulo 2^32 as ``low + 2^16·high``, both signed: 16-bit products go two at a time.

    The low ones come first, then the high ones, each padded with zeros to whole `STEP`.
    """
    padded, width = halves.size // 2, words.size
    whole = width // 16 * 16
    _halves_of(words, halves, whole)
    for i in range(whole, padded):
        word = words[i] if i < width else np.uint32(0)
        halves[i] = np.int16(word)
        halves[padded + i] = np.int16(np.uint32(word + np.uint32(0x8000)) >> np.uint32(16))


def side_by_side(sums: I16) -> I16:
    """Rows of sums [count, width] as `products` reads them: in one stretch, some digits of `TOGETHER` rows in turn.

    Rows and digits that lack to whole ones are zero: int16 [⌈count/TOGETHER⌉, padded/LANES, TOGETHER, LANES].
    """
    count, width = sums.shape
    visits, padded = -(-count // TOGETHER), halves_of(width) // 2
    whole = np.zeros((visits * TOGETHER, padded), np.int16)
    whole[:count, :width] = sums
    return np.ascontiguousarray(whole.reshape(visits, TOGETHER, padded // LANES, LANES).transpose(0, 2, 1, 3))


@vector_code
def products(typing_context, sums, visit, halves, out):  # type: ignore[no-untyped-def]
    """``out[p] = Σ_i sums_p,i·(low_i + 2^16·high_i)`` modulo 2^32, for the `TOGETHER` places p from ``visit·TOGETHER`` on.

    sums is flat int16, laid out by `side_by_side`, halves those of `take_halves`; out is uint32. What is read soon is asked
    for ahead.
    """

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        sums, halves, out = (array(context, builder, signature, args, place) for place in (0, 2, 3))
        count = builder.lshr(builder.extract_value(halves.shape, 0), I64(1))
        low_and_high = (halves.data, builder.gep(halves.data, [count]))
        start = builder.gep(sums.data, [builder.mul(builder.mul(args[1], count), I64(TOGETHER))])
        with Loop(builder, count, LANES, [_WORDS] * (2 * TOGETHER)) as loop:
            here = builder.gep(start, [builder.mul(loop.index, I64(TOGETHER))])
            for line in range(0, TOGETHER * LANES, 32):
                prefetch(builder, builder.gep(here, [I64(AHEAD_BYTES // 2 + line)]))
            parts = [read(builder, builder.gep(each, [loop.index]), _DIGITS) for each in low_and_high]
            for row in range(TOGETHER):
                own = read(builder, builder.gep(here, [I64(row * LANES)]), _DIGITS)
                for half, words in enumerate(parts):
                    product = _pair_products(context, builder, own, words)
                    loop.values[2 * row + half] = builder.add(loop.values[2 * row + half], product)
        first = builder.mul(args[1], I64(TOGETHER))
        for row in range(TOGETHER):
            upper = builder.shl(loop.values[2 * row + 1], constant(_WORDS, 16))
            total = _across(builder, builder.add(loop.values[2 * row], upper))
            builder.store(total, builder.gep(out.data, [plus(builder, first, row)]))
        return context.get_dummy_value()

    return types.void(sums, types.intp, halves, out), code


@vector_code
def ask_ahead(typing_context, data, size):  # type: ignore[no-untyped-def]
    """Ask for the first ``size`` bytes of a flat uint8 array to be read."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        data = array(context, builder, signature, args, 0)
        with Loop(builder, args[1], 64, []) as loop:
            prefetch(builder, builder.gep(data.data, [loop.index]))
        return context.get_dummy_value()

    return types.void(data, types.intp), code


@vector_code
def signed_sum(typing_context, signs, begin, words, first, count):  # type: ignore[no-untyped-def]
    """``Σ_i signs[begin + i]·words[first + i]`` modulo 2^32 of ``count`` words; signs is flat int8, words uint32."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        signs, words = (array(context, builder, signature, args, place) for place in (0, 2))
        begins, reads = builder.gep(signs.data, [args[1]]), builder.gep(words.data, [args[3]])
        byte, eight = ir.IntType(8), ir.VectorType(ir.IntType(8), 8)
        turns, eights = (builder.and_(args[4], I64(-size)) for size in (STEP, 8))

        def term(at: Value) -> Value:
            own = builder.sext(read(builder, builder.gep(begins, [at]), eight), _WORDS)
            return _signed(context, builder, read(builder, builder.gep(reads, [at]), _WORDS), own)

        with Loop(builder, turns, STEP, [_WORDS] * 4) as loop:
            for step in range(4):
                loop.values[step] = builder.add(loop.values[step], term(plus(builder, loop.index, 8 * step)))
        one, other = (builder.add(*loop.values[half : half + 2]) for half in (0, 2))
        with Loop(builder, builder.sub(eights, turns), 8, [_WORDS], [builder.add(one, other)]) as rest:
            rest.values[0] = builder.add(rest.values[0], term(builder.add(turns, rest.index)))
        across = _across(builder, rest.values[0])
        with Loop(builder, builder.sub(args[4], eights), 1, [I32], [across]) as last:
            at = builder.add(eights, last.index)
            own = builder.sext(read(builder, builder.gep(begins, [at]), byte), I32)
            last.values[0] = builder.add(last.values[0], builder.mul(own, read(builder, builder.gep(reads, [at]), I32)))
        return last.values[0]

    size = types.intp
    return types.uint32(signs, size, words, size, size), code


def _signed(context: Context, builder: Builder, words: Value, signs: Value) -> Value:
    """Eight words times signs of 1 and -1."""
    if has_feature(context, "avx2"):
        return builder.call(declare(builder, "llvm.x86.avx2.psign.d", _WORDS, [_WORDS] * 2), [words, signs])
    return builder.mul(words, signs)
