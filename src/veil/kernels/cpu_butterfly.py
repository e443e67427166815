"""Butterflies of the CPU transforms, written as LLVM vectors: two or three stages of a strip of columns in registers.

A strip is W columns of an R × R square, W being 16 or 8. A visit takes 4 or 8 rows of it through two or three stages, so
that each word is loaded and stored twice in a transform of degree 4096 instead of twelve times.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.cgutils import for_range

from veil.kernels.cpu_modulus import Modulus
from veil.kernels.cpu_vector import I64, array, load, plus, splat, store, vector_code, vector_words

FORWARD, BACK, FORWARD_COLUMNS, BACK_COLUMNS = 0, 1, 2, 3
"""Halves of a transform. Forward: one factor for all columns, then (after a transposition) factors of each column, down to
below p; back: the same in the other order, and the factor 1/degree.
"""


class _Twiddles:
    """Factors of node g in the tree of groups: one word for all columns (row 0 of the table), or row g, a word a column."""

    def __init__(self, builder: Any, table: Any, column: Any, modulus: Modulus, by_column: bool) -> None:
        self._builder, self._modulus, self._by_column, self._column = builder, modulus, by_column, column
        self._data = table.data
        self._side = builder.extract_value(table.shape, 2)
        self._half = builder.mul(self._side, self._side)

    def __call__(self, node: Any) -> tuple[Any, Any]:
        builder = self._builder
        place = builder.add(builder.mul(node, self._side), self._column) if self._by_column else node
        pointers = [builder.gep(self._data, [builder.add(place, offset)]) for offset in (I64(0), self._half)]
        if self._by_column:
            factor, companion = (load(builder, pointer, self._modulus.kind) for pointer in pointers)
        else:
            factor, companion = (splat(builder, builder.load(pointer), self._modulus.kind) for pointer in pointers)
        return factor, companion


def _forward(builder: Any, rows: list[Any], node: Any, factors: _Twiddles, modulus: Modulus) -> list[Any]:
    """Cooley-Tukey stages on rows below 4p; the result is below 4p."""
    nodes, half = [node], len(rows) // 2
    while half:
        for g, this in enumerate(nodes):
            factor, companion = factors(this)
            for k in range(2 * half * g, 2 * half * g + half):
                u = modulus.lower(rows[k], modulus.twice)
                v = modulus.times(rows[k + half], factor, companion)
                rows[k] = builder.add(u, v)
                rows[k + half] = builder.add(builder.sub(u, v), modulus.twice)
        nodes = [plus(builder, builder.mul(this, I64(2)), side) for this in nodes for side in (0, 1)]
        half //= 2
    return rows


def _inverse(builder: Any, rows: list[Any], node: Any, factors: _Twiddles, modulus: Modulus) -> list[Any]:
    """Gentleman-Sande stages on rows below 2p; the result is below 2p."""
    levels = [[node]]
    while len(levels[-1]) < len(rows) // 2:
        levels.append([plus(builder, builder.mul(this, I64(2)), side) for this in levels[-1] for side in (0, 1)])
    half = 1
    for nodes in reversed(levels):
        for g, this in enumerate(nodes):
            factor, companion = factors(this)
            for k in range(2 * half * g, 2 * half * g + half):
                u, v = rows[k], rows[k + half]
                rows[k] = modulus.lower(builder.add(u, v), modulus.twice)
                difference = builder.add(builder.sub(u, v), modulus.twice)
                rows[k + half] = modulus.times(difference, factor, companion)
        half *= 2
    return rows


@vector_code(prefer_literal=True)
def stages(typing_context, side, kind, a, out, twiddles, p):  # type: ignore[no-untyped-def]
    """Half a transform: log2(R) stages between the rows of ``a`` [R, R], which they destroy, into ``out``.

    ``side`` R and ``kind`` (`FORWARD` and so on) are constants; ``twiddles`` [2, R, R] are a transform's table.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, out, table = (array(context, builder, signature, args, place) for place in (2, 3, 4))
        R, (inverse, by_column) = side.literal_value, (bool(kind.literal_value & bit) for bit in (1, 2))
        width = vector_words(context) if R >= 16 else 8
        modulus = Modulus(builder, width, args[5])
        with for_range(builder, I64(R // width)) as strip:
            column = builder.mul(strip.index, I64(width))
            factors = _Twiddles(builder, table, column, modulus, by_column)
            for far in (False, True) if inverse else (True, False):
                radix = _radix(R, far)
                last = far == inverse or R == 8
                if R == 8 and far:
                    continue
                with for_range(builder, I64(R // radix)) as group:
                    step = R // radix if far else 1
                    first = group.index if far else builder.mul(group.index, I64(radix))
                    rows = [plus(builder, first, k * step) for k in range(radix)]
                    places = [builder.add(builder.mul(row, I64(R)), column) for row in rows]
                    values = [load(builder, builder.gep(a.data, [place]), modulus.kind) for place in places]
                    node = I64(1) if far else plus(builder, group.index, R // radix)
                    values = (_inverse if inverse else _forward)(builder, values, node, factors, modulus)
                    if last and by_column != inverse:
                        values = [_finished(value, factors, modulus, inverse) for value in values]
                    for value, place in zip(values, places, strict=True):
                        store(builder, builder.gep((out if last else a).data, [place]), value)
        return context.get_dummy_value()

    return types.void(side, kind, a, out, twiddles, types.uint32), code


def _radix(side: int, far: bool) -> int:
    """Rows of a visit: those of the far stages (rows R/radix apart) and the near ones (neighbours); 8·8, 8·4, 4·4 or 8."""
    return 4 if side == 16 or (side == 32 and not far) else 8


def _finished(value: Any, factors: _Twiddles, modulus: Modulus, inverse: bool) -> Any:
    """A transform's result below p: forward from below 4p, inverse after the factor 1/degree, the table's entry 0."""
    value = modulus.times(value, *factors(I64(0))) if inverse else modulus.lower(value, modulus.twice)
    return modulus.lower(value, modulus.once)
