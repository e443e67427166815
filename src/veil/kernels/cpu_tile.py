"""The inner loops of the Ĥ product, written as LLVM vectors: what Numba's own vectoriser does not find.

One word of Ĥ is broadcast and multiplied with a vector of leaves, one lane a mask: a multiplication and an addition for
every eight (AVX-512) or four (AVX2) products, no shuffle, no sum across lanes. `lanes` masks and `ROWS` rows keep
every sum in a register. Ĥ is read once, in order, and each visit prefetches the rows of the next: a quarter of the time
went into waiting for them. LLVM lowers the same code to whatever vectors the machine has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types

from veil.kernels.cpu_vector import (
    I32,
    I64,
    Loop,
    array,
    constant,
    declare,
    even_odd,
    load,
    plus,
    prefetch,
    splat,
    store,
    transposed,
    vector_code,
)

ROWS = 4
"""Rows of Ĥ that one visit multiplies."""
AHEAD = 4
"""For one mask, how many rows ahead of the one that is multiplied memory is read."""
STEP = 8
"""Leaves in one turn of the loops; every parameter set has a multiple of it."""


def _tile(masks: int) -> Callable[..., Any]:
    """``sums[first + r, t] = Σ_i rows[first + r, i]·leaves[i, t]`` for `ROWS` rows and this many masks t."""
    sums_type, words_type, twice = (ir.VectorType(t, c) for t, c in ((I64, masks), (I32, masks), (I32, 2 * masks)))

    @vector_code
    def tile(typing_context, rows, first, leaves, sums):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            rows, leaves, sums = (array(context, builder, signature, args, place) for place in (0, 2, 3))
            count = builder.extract_value(rows.shape, 1)
            starts = [builder.gep(rows.data, [builder.mul(plus(builder, args[1], r), count)]) for r in range(ROWS)]
            with Loop(builder, count, STEP, [sums_type] * ROWS) as loop:
                for step in range(STEP):
                    i = plus(builder, loop.index, step)
                    leaf = builder.gep(leaves.data, [builder.mul(i, I64(masks))])
                    factors = builder.zext(load(builder, leaf, words_type), sums_type)
                    for r, start in enumerate(starts):
                        word = builder.gep(start, [i])
                        if step == 0:
                            prefetch(builder, builder.gep(word, [builder.mul(count, I64(ROWS))]))
                        row = splat(builder, builder.load(word), twice)
                        row = builder.and_(builder.bitcast(row, sums_type), constant(sums_type, 0xFFFFFFFF))
                        loop.values[r] = builder.add(loop.values[r], builder.mul(row, factors))
            for r, total in enumerate(loop.values):
                place = builder.mul(plus(builder, args[1], r), I64(masks))
                store(builder, builder.gep(sums.data, [place]), total)
            return context.get_dummy_value()

        return types.void(rows, types.intp, leaves, sums), code

    return tile


_tile_4, _tile_8, _tile_16 = _tile(4), _tile(8), _tile(16)


@vector_code
def _two_dots(typing_context, rows0, rows1, row, leaf0, leaf1, sums0, sums1):  # type: ignore[no-untyped-def]
    """``sums[row] = Σ_i rows[row, i]·leaf[i]`` at two points: even words, then odd words, of each pair.

    Two streams through memory at once, which a core reads faster than one.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = [array(context, builder, signature, args, place) for place in (0, 1, 3, 4, 5, 6)]
        rows, leaves, sums = places[:2], places[2:4], places[4:]
        pairs = ir.VectorType(I64, STEP // 2)
        count = builder.extract_value(rows[0].shape, 1)
        starts = [builder.gep(one.data, [builder.mul(args[2], count)]) for one in rows]
        with Loop(builder, count, STEP, [pairs] * 4) as loop:
            for which, (start, leaf) in enumerate(zip(starts, leaves, strict=True)):
                factors = even_odd(builder, load(builder, builder.gep(leaf.data, [loop.index]), pairs))
                word = builder.gep(start, [loop.index])
                prefetch(builder, builder.gep(word, [builder.mul(count, I64(AHEAD))]))
                words = even_odd(builder, load(builder, word, pairs))
                for half, (row, factor) in enumerate(zip(words, factors, strict=True)):
                    place = 2 * which + half
                    loop.values[place] = builder.add(loop.values[place], builder.mul(row, factor))
        reduce = declare(builder, f"llvm.vector.reduce.add.v{STEP // 2}i64", I64, [pairs])
        for which, total in enumerate(sums):
            both = builder.add(*loop.values[2 * which : 2 * which + 2])
            builder.store(builder.call(reduce, [both]), builder.gep(total.data, [args[2]]))
        return context.get_dummy_value()

    return types.void(rows0, rows1, types.intp, leaf0, leaf1, sums0, sums1), code


@njit(cache=True)
def two_dots(rows0, rows1, leaves0, leaves1, sums0, sums1):  # type: ignore[no-untyped-def]
    """`dots` for one mask at two points at once."""
    for row in range(rows0.shape[0]):
        _two_dots(rows0, rows1, row, leaves0, leaves1, sums0, sums1)


@njit(cache=True)
def dots(rows, leaves, sums):  # type: ignore[no-untyped-def]
    """``sums = rows · leaves``: rows [R, I], R ≥ `ROWS`, and leaves [I, W], W one of 4, 8, 16 → sums [R, W] below 2^64.

    Where R is no multiple of `ROWS`, the last visit repeats some rows.
    """
    count, width = rows.shape[0], leaves.shape[1]
    for row in range(0, count, ROWS):
        first = min(row, count - ROWS)
        if width == 16:
            _tile_16(rows, first, leaves, sums)
        elif width == 8:
            _tile_8(rows, first, leaves, sums)
        else:
            _tile_4(rows, first, leaves, sums)


def _transposer(masks: int, ahead: bool) -> Callable[..., Any]:
    """Code for `transpose`; ``ahead`` asks for the line after each row of the source."""
    words_type = ir.VectorType(I32, masks)

    @vector_code
    def transpose(typing_context, source, start, step, source_rows, target, out_start, out_step, target_rows):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target = (array(context, builder, signature, args, place) for place in (0, 4))
            rows = []
            for r in range(masks):
                place = _row(builder, args[1], args[2], args[3], r)
                rows.append(load(builder, builder.gep(source.data, [place]), words_type))
                if ahead:
                    prefetch(builder, builder.gep(source.data, [plus(builder, place, 16)]))
            for r, row in enumerate(transposed(builder, rows)):
                place = _row(builder, args[5], args[6], args[7], r)
                store(builder, builder.gep(target.data, [place]), row)
            return context.get_dummy_value()

        size = types.intp
        return types.void(source, size, size, size, target, size, size, size), code

    return transpose


_transpose_4, _transpose_8, _transpose_16 = (_transposer(width, False) for width in (4, 8, 16))
_gather_4, _gather_8, _gather_16 = (_transposer(width, True) for width in (4, 8, 16))


@njit(cache=True)
def transpose(source, start, step, source_rows, target, out_start, out_step, target_rows, width):  # type: ignore[no-untyped-def]
    """A square of words [W, W], W one of 4, 8, 16, transposed from one flat array into another.

    Row r of the source is at ``start + r·step``, of the target at ``out_start + r·out_step``. Where there are fewer rows
    than W, on either side, the last one stands for the missing.
    """
    if width == 16:
        _transpose_16(source, start, step, source_rows, target, out_start, out_step, target_rows)
    elif width == 8:
        _transpose_8(source, start, step, source_rows, target, out_start, out_step, target_rows)
    else:
        _transpose_4(source, start, step, source_rows, target, out_start, out_step, target_rows)


@njit(cache=True)
def gather_lines(source, start, step, source_rows, target, out_start, out_step, width):  # type: ignore[no-untyped-def]
    """`transpose` from rows that are far apart into W rows, asking for the next line of each row."""
    if width == 16:
        _gather_16(source, start, step, source_rows, target, out_start, out_step, width)
    elif width == 8:
        _gather_8(source, start, step, source_rows, target, out_start, out_step, width)
    else:
        _gather_4(source, start, step, source_rows, target, out_start, out_step, width)


def _row(builder: Any, start: Any, step: Any, rows: Any, row: int) -> Any:
    """Where a row starts; the last of ``rows`` for those beyond."""
    last = builder.sub(rows, I64(1))
    kept = builder.select(builder.icmp_signed("<", I64(row), rows), I64(row), last)
    return builder.add(start, builder.mul(kept, step))
