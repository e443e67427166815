"""Transforms of sixteen polynomials at once: a *strip* [degree, 16], a row for each coefficient or point.

All columns take the same factors, so a butterfly works on whole vectors, there is no transposition, and any power of two is
a degree. A visit takes 8 rows (4 or 2 at the end) through three stages in registers. Harvey's lazy butterflies (arXiv
1205.2926): values below 4p between stages.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted
from veil.kernels.cpu.modulus import Modulus
from veil.kernels.cpu.vector import (
    I64,
    Builder,
    Context,
    Signature,
    Value,
    Values,
    array,
    load,
    plus,
    splat,
    store,
    vector_code,
    vector_words,
)
from veil.kernels.tables import NttTable, shoup

U32 = NDArray[np.uint32]

COLUMNS = 16
"""Polynomials of a strip: words of a cache line."""


def forward_factors(table: NttTable) -> U32:
    """Factors [2, degree] that `forward` takes: the powers of psi and their Shoup companions."""
    return np.stack([table.forward, shoup(table.forward, table.prime)])


def inverse_factors(table: NttTable, last: int = 1) -> U32:
    """Factors [2, degree] that `inverse` takes; ``last / degree``, which multiplies the result, is in the unused entry 0."""
    factors = table.inverse.copy()
    factors[0] = table.degree_inverse * last % table.prime
    return np.stack([factors, shoup(factors, table.prime)])


def _forward(builder: Builder, rows: list[Value], nodes: list[tuple[Value, Value]], modulus: Modulus) -> list[Value]:
    """Cooley-Tukey stages on rows below 4p; the result is below 4p. ``nodes`` are the factors of each stage's groups."""
    place, groups, half = 0, 1, len(rows) // 2
    while half:
        for g in range(groups):
            factor, companion = nodes[place + g]
            for k in range(2 * half * g, 2 * half * g + half):
                u = modulus.lower(rows[k], modulus.twice)
                v = modulus.times(rows[k + half], factor, companion)
                rows[k] = builder.add(u, v)
                rows[k + half] = builder.add(builder.sub(u, v), modulus.twice)
        place, groups, half = place + groups, 2 * groups, half // 2
    return rows


def _inverse(builder: Builder, rows: list[Value], nodes: list[tuple[Value, Value]], modulus: Modulus) -> list[Value]:
    """Gentleman-Sande stages on rows below 2p; the result is below 2p."""
    groups, half = len(rows) // 2, 1
    place = len(nodes) - groups
    while groups:
        for g in range(groups):
            factor, companion = nodes[place + g]
            for k in range(2 * half * g, 2 * half * g + half):
                u, v = rows[k], rows[k + half]
                rows[k] = modulus.lower(builder.add(u, v), modulus.twice)
                rows[k + half] = modulus.times(builder.add(builder.sub(u, v), modulus.twice), factor, companion)
        groups, half = groups // 2, 2 * half
        place -= groups
    return rows


@vector_code(prefer_literal=True)
def _visit(typing_context, radix, back, strip, first, step, node, factors, p):  # type: ignore[no-untyped-def]
    """Stages between ``radix`` rows of a strip, ``step`` apart from ``first`` on; ``node`` is the first stage's group."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        strip, table = array(context, builder, signature, args, 2), array(context, builder, signature, args, 6)
        first, step, node = args[3:6]
        count, width = radix.literal_value, vector_words(context)
        modulus = Modulus(builder, width, args[7])
        degree = builder.extract_value(table.shape, 1)

        def both(place: Value) -> tuple[Value, Value]:
            places = (place, builder.add(place, degree))
            factor, companion = (splat(builder, builder.load(builder.gep(table.data, [at])), modulus.kind) for at in places)
            return factor, companion

        nodes, level = [], [node]
        while len(level) < count:
            nodes += [both(place) for place in level]
            level = [plus(builder, builder.mul(place, I64(2)), side) for place in level for side in (0, 1)]
        rows = [builder.mul(builder.add(first, builder.mul(step, I64(k))), I64(COLUMNS)) for k in range(count)]
        for column in range(0, COLUMNS, width):
            pointers = [builder.gep(strip.data, [plus(builder, row, column)]) for row in rows]
            values = [load(builder, pointer, modulus.kind) for pointer in pointers]
            values = (_inverse if back.literal_value else _forward)(builder, values, nodes, modulus)
            for pointer, value in zip(pointers, values, strict=True):
                store(builder, pointer, value)
        return context.get_dummy_value()

    return types.void(radix, back, strip, types.intp, types.intp, types.intp, factors, types.uint32), code


@vector_code
def _finish(typing_context, strip, count, factors, p):  # type: ignore[no-untyped-def]
    """Multiply ``count`` rows below 2p by entry 0 of the factors, to below p."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        strip, table = array(context, builder, signature, args, 0), array(context, builder, signature, args, 2)
        width = vector_words(context)
        modulus = Modulus(builder, width, args[3])
        degree = builder.extract_value(table.shape, 1)
        factor, companion = (
            splat(builder, builder.load(builder.gep(table.data, [place])), modulus.kind) for place in (I64(0), degree)
        )
        from numba.core.cgutils import for_range

        with for_range(builder, builder.mul(args[1], I64(COLUMNS // width))) as turn:
            pointer = builder.gep(strip.data, [builder.mul(turn.index, I64(width))])
            value = modulus.times(load(builder, pointer, modulus.kind), factor, companion)
            store(builder, pointer, modulus.lower(value, modulus.once))
        return context.get_dummy_value()

    return types.void(strip, types.intp, factors, types.uint32), code


@jitted()
def lower(strip, p):  # type: ignore[no-untyped-def]
    """Values below 4p of a flat strip, below p."""
    twice = np.uint32(p + p)
    for j in range(strip.size):
        v = strip[j]
        v = min(v, np.uint32(v - twice))
        strip[j] = min(v, np.uint32(v - p))


@jitted()
def forward(strip, factors, p):  # type: ignore[no-untyped-def]
    """Transform a flat strip [degree·16] of values below 4p in place, to below p."""
    degree = strip.size // COLUMNS
    groups, size = 1, degree
    while size > 1:
        if size >= 8:
            step = size // 8
            for g in range(groups):
                for o in range(step):
                    _visit(8, 0, strip, g * size + o, step, groups + g, factors, p)
            groups, size = groups * 8, step
        elif size == 4:
            for g in range(groups):
                _visit(4, 0, strip, g * 4, 1, groups + g, factors, p)
            groups, size = groups * 4, 1
        else:
            for g in range(groups):
                _visit(2, 0, strip, g * 2, 1, groups + g, factors, p)
            groups, size = groups * 2, 1
    lower(strip, p)


@jitted()
def inverse(strip, factors, p):  # type: ignore[no-untyped-def]
    """Inverse of `forward`, times the factors' ``last``: values below 2p, to below p."""
    degree = strip.size // COLUMNS
    rest = degree
    while rest >= 8:
        rest //= 8
    size = 1
    if rest == 4:
        for g in range(degree // 4):
            _visit(4, 1, strip, g * 4, 1, degree // 4 + g, factors, p)
        size = 4
    elif rest == 2:
        for g in range(degree // 2):
            _visit(2, 1, strip, g * 2, 1, degree // 2 + g, factors, p)
        size = 2
    while size < degree:
        step, size = size, size * 8
        groups = degree // size
        for g in range(groups):
            for o in range(step):
                _visit(8, 1, strip, g * size + o, step, groups + g, factors, p)
    _finish(strip, degree, factors, p)
