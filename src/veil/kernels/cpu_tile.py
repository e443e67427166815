"""The inner loops of the Ĥ product, written as LLVM vectors: what Numba's own vectoriser does not find.

One word of Ĥ is broadcast and multiplied with a vector of leaves, one lane a mask: a multiplication and an addition for
every eight (AVX-512) or four (AVX2) products, no shuffle, no sum across lanes. `masks_at_once` lanes and `ROWS` rows keep
every sum in a register. Ĥ is read once, in order, and each visit prefetches the rows of the next: a quarter of the time
went into waiting for them. LLVM lowers the same code to whatever vectors the machine has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

ROWS = 4
"""Rows of Ĥ that one visit multiplies."""
STEP = 8
"""Leaves in one turn of the loops; every parameter set has a multiple of it."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_LOW = 0xFFFFFFFF

_vector_code: Any = intrinsic  # whose type counts the typing context among the arguments


@_vector_code
def masks_at_once(typing_context):  # type: ignore[no-untyped-def]
    """The masks whose sums fill the machine's vector registers: 16 with AVX-512, 8 otherwise."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        features = context.codegen().magic_tuple()[2]
        return ir.Constant(_I64, 16 if "+avx512f" in features else 8)

    return types.intp(), code


def _tile(masks: int) -> Callable[..., Any]:
    """``sums[first + r, t] = Σ_i rows[first + r, i]·leaves[i, t]`` for `ROWS` rows and this many masks t."""
    sums_type, words_type, twice = (ir.VectorType(t, c) for t, c in ((_I64, masks), (_I32, masks), (_I32, 2 * masks)))

    @_vector_code
    def tile(typing_context, rows, first, leaves, sums):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            rows, leaves, sums = (_array(context, builder, signature, args, place) for place in (0, 2, 3))
            count = builder.extract_value(rows.shape, 1)
            starts = [builder.gep(rows.data, [builder.mul(_plus(builder, args[1], r), count)]) for r in range(ROWS)]
            with _Loop(builder, count, [sums_type] * ROWS) as loop:
                for step in range(STEP):
                    i = _plus(builder, loop.index, step)
                    leaf = builder.gep(leaves.data, [builder.mul(i, _I64(masks))])
                    factors = builder.zext(_load(builder, leaf, words_type), sums_type)
                    for r, start in enumerate(starts):
                        word = builder.gep(start, [i])
                        if step == 0:
                            _prefetch(builder, builder.gep(word, [builder.mul(count, _I64(ROWS))]))
                        row = _splat(builder, builder.load(word), twice)
                        row = builder.and_(builder.bitcast(row, sums_type), _all(sums_type, _LOW))
                        loop.values[r] = builder.add(loop.values[r], builder.mul(row, factors))
            for r, total in enumerate(loop.values):
                place = builder.mul(_plus(builder, args[1], r), _I64(masks))
                _store(builder, builder.gep(sums.data, [place]), total)
            return context.get_dummy_value()

        return types.void(rows, types.intp, leaves, sums), code

    return tile


_tile_4, _tile_8, _tile_16 = _tile(4), _tile(8), _tile(16)


@_vector_code
def _dots(typing_context, rows, first, leaf, sums):  # type: ignore[no-untyped-def]
    """``sums[first + r] = Σ_i rows[first + r, i]·leaf[i]`` for `ROWS` rows: even words, then odd words, of each pair."""
    pairs = ir.VectorType(_I64, STEP // 2)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, leaf, sums = (_array(context, builder, signature, args, place) for place in (0, 2, 3))
        count = builder.extract_value(rows.shape, 1)
        starts = [builder.gep(rows.data, [builder.mul(_plus(builder, args[1], r), count)]) for r in range(ROWS)]
        with _Loop(builder, count, [pairs] * ROWS) as loop:
            factors = _even_odd(builder, _load(builder, builder.gep(leaf.data, [loop.index]), pairs))
            for r, start in enumerate(starts):
                word = builder.gep(start, [loop.index])
                _prefetch(builder, builder.gep(word, [builder.mul(count, _I64(ROWS))]))
                for row, factor in zip(_even_odd(builder, _load(builder, word, pairs)), factors, strict=True):
                    loop.values[r] = builder.add(loop.values[r], builder.mul(row, factor))
        reduce = _declare(builder, f"llvm.vector.reduce.add.v{STEP // 2}i64", _I64, [pairs])
        for r, total in enumerate(loop.values):
            builder.store(builder.call(reduce, [total]), builder.gep(sums.data, [_plus(builder, args[1], r)]))
        return context.get_dummy_value()

    return types.void(rows, types.intp, leaf, sums), code


@njit(cache=True)
def dots(rows, leaves, sums):  # type: ignore[no-untyped-def]
    """``sums = rows · leaves``: rows [R, I], R ≥ `ROWS`, and leaves [I, W], W one of 1, 4, 8, 16 → sums [R, W] below 2^64.

    Where R is no multiple of `ROWS`, the last visit repeats some rows.
    """
    count, width = rows.shape[0], leaves.shape[1]
    for row in range(0, count, ROWS):
        first = min(row, count - ROWS)
        if width == 16:
            _tile_16(rows, first, leaves, sums)
        elif width == 8:
            _tile_8(rows, first, leaves, sums)
        elif width == 4:
            _tile_4(rows, first, leaves, sums)
        else:
            _dots(rows, first, leaves, sums)


def _transposer(masks: int) -> Callable[..., Any]:
    """A square of words [W, W] from rows ``step`` apart, transposed, to rows ``out_step`` apart; the last row is repeated
    for rows from ``count`` on, on both sides.
    """
    words_type = ir.VectorType(_I32, masks)

    @_vector_code
    def transpose(typing_context, source, start, step, source_rows, target, out_start, out_step, target_rows):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target = (_array(context, builder, signature, args, place) for place in (0, 4))
            rows = []
            for r in range(masks):
                place = _row(builder, args[1], args[2], args[3], r)
                rows.append(_load(builder, builder.gep(source.data, [place]), words_type))
            for r, row in enumerate(_transposed(builder, rows)):
                place = _row(builder, args[5], args[6], args[7], r)
                _store(builder, builder.gep(target.data, [place]), row)
            return context.get_dummy_value()

        size = types.intp
        return types.void(source, size, size, size, target, size, size, size), code

    return transpose


_transpose_4, _transpose_8, _transpose_16 = _transposer(4), _transposer(8), _transposer(16)


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


# Pieces of LLVM code -----------------------------------------------------------------------------------------------------


class _Loop:
    """``for index in range(0, count, STEP)`` with sums in registers; ``values`` are their new values."""

    def __init__(self, builder: Any, count: Any, kinds: list[Any]) -> None:
        self._builder, self._count, self._kinds = builder, count, kinds

    def __enter__(self) -> _Loop:
        builder, before = self._builder, self._builder.block
        self._body, self._after = (builder.append_basic_block(name) for name in ("tile", "tiled"))
        builder.branch(self._body)
        builder.position_at_end(self._body)
        self.index = builder.phi(_I64)
        self.index.add_incoming(_I64(0), before)
        self._sums = [builder.phi(kind) for kind in self._kinds]
        for total, kind in zip(self._sums, self._kinds, strict=True):
            total.add_incoming(ir.Constant(kind, None), before)
        self.values = list(self._sums)
        return self

    def __exit__(self, *error: object) -> None:
        builder = self._builder
        following = _plus(builder, self.index, STEP)
        self.index.add_incoming(following, self._body)
        for total, value in zip(self._sums, self.values, strict=True):
            total.add_incoming(value, self._body)
        builder.cbranch(builder.icmp_signed("<", following, self._count), self._body, self._after)
        builder.position_at_end(self._after)


def _array(context: Any, builder: Any, signature: Any, args: Any, place: int) -> Any:
    return context.make_array(signature.args[place])(context, builder, args[place])


def _plus(builder: Any, value: Any, constant: int) -> Any:
    return builder.add(value, _I64(constant))


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def _store(builder: Any, pointer: Any, value: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=8)


def _row(builder: Any, start: Any, step: Any, rows: Any, row: int) -> Any:
    """Where a row starts; the last of ``rows`` for those beyond."""
    last = builder.sub(rows, _I64(1))
    kept = builder.select(builder.icmp_signed("<", _I64(row), rows), _I64(row), last)
    return builder.add(start, builder.mul(kept, step))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """A square of vectors transposed, by exchanging halves of blocks of 2, 4, ... rows."""
    size = len(rows)
    half = 1
    while half < size:
        low = [c if not c & half else size + c - half for c in range(size)]
        high = [c + half if not c & half else size + c for c in range(size)]
        done = list(rows)
        for r in range(size):
            if not r & half:
                for place, order in ((r, low), (r + half, high)):
                    lanes = ir.Constant(ir.VectorType(_I32, size), order)
                    done[place] = builder.shuffle_vector(rows[r], rows[r + half], lanes)
        rows, half = done, 2 * half
    return rows


def _splat(builder: Any, word: Any, kind: Any) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, word, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


def _even_odd(builder: Any, pairs: Any) -> tuple[Any, Any]:
    return builder.and_(pairs, _all(pairs.type, _LOW)), builder.lshr(pairs, _all(pairs.type, 32))


def _declare(builder: Any, name: str, result: Any, kinds: list[Any]) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, kinds), name)


def _prefetch(builder: Any, pointer: Any) -> None:
    """Ask for a line of data to be read, to all cache levels."""
    ask = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [_BYTES, _I32, _I32, _I32])
    builder.call(ask, [builder.bitcast(pointer, _BYTES), _I32(0), _I32(3), _I32(1)])
