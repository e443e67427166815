"""The inner loops of the online product: some rows of int8 weights with some rows of words, sums in registers.

The words are laid out in `planes` of digits. The highest digit comes first; what it gives is shifted up in place, and the
next digit's products are added to it.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types

from veil.kernels.cpu.planes import BYTES, PAIRS, STEP, form_of
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

OFFLINE_BYTES = (4096, 1536)
"""How far ahead memory is asked for where rows are few; what the first asks for may be dropped when much is on its way."""
_I8, _I16 = ir.IntType(8), ir.IntType(16)
_FEW = 2  # rows for which weights are asked for ahead


def _weights(context: Context, rows: int) -> int:
    """Rows of weights of one visit: as many sums as the registers hold, and as few visits as that allows."""
    if form_of(context) == BYTES and has_feature(context, "avx512vnni"):
        return 8 if rows == 1 else 4
    return 4 if rows <= 2 else 2


@vector_code
def weights_of(typing_context, rows):  # type: ignore[no-untyped-def]
    """Rows of weights that one visit with this many rows multiplies."""

    def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        size = I64(_weights(context, 6))
        for few in (4, 3, 2, 1):
            fits = builder.icmp_signed("<=", args[0], I64(few))
            size = builder.select(fits, I64(_weights(context, few)), size)
        return size

    return types.intp(types.intp), code


class _Visit:
    """What one visit works on: where its two rows of weights and its rows of planes begin, and how far they reach."""

    def __init__(self, builder: Builder, starts: list[Value], planes: list[Value], sizes: list[Value]) -> None:
        self.builder, self.starts, self.planes = builder, starts, planes
        self.first, self.count, self.padded, self.kept = sizes
        self.ahead = len(planes) <= _FEW

    def rows(self, above: Value, digit_bytes: int) -> list[Value]:
        """Where the rows' digits begin in a plane ``above`` bytes after the lowest."""
        offset = self.builder.add(above, self.builder.mul(self.first, I64(digit_bytes)))
        return [self.builder.gep(place, [offset]) for place in self.planes]

    def count_if(self, kept: int) -> Value:
        return self.builder.select(self.builder.icmp_signed("==", self.kept, I64(kept)), self.count, I64(0))

    def ask(self, index: Value) -> None:
        """Ask for weights that later visits read."""
        if self.ahead:
            for start in self.starts:
                for distance in OFFLINE_BYTES:
                    prefetch(self.builder, self.builder.gep(start, [plus(self.builder, index, distance)]))


def _add_digits(visit: _Visit, count: Value, above: Value, sums: list[Value]) -> list[Value]:
    """Sums of eight words each, plus weights times signed 16-bit digits in a plane ``above`` bytes after the lowest."""
    builder, kind, digits = visit.builder, ir.VectorType(I32, 8), ir.VectorType(_I16, 16)
    multiply, many = declare(builder, "llvm.x86.avx2.pmadd.wd", kind, [digits] * 2), len(visit.starts)
    places = visit.rows(above, 2)
    turn = STEP if visit.ahead else STEP // 2
    with Loop(builder, count, turn, [kind] * len(sums), sums) as loop:
        visit.ask(loop.index)
        for step in range(0, turn, 16):
            at = plus(builder, loop.index, step)
            weights = [
                builder.sext(read(builder, builder.gep(start, [at]), ir.VectorType(_I8, 16)), digits)
                for start in visit.starts
            ]
            double = builder.shl(at, I64(1))
            for t, place in enumerate(places):
                x = read(builder, builder.gep(place, [double]), digits)
                for w, row in enumerate(weights):
                    product = builder.call(multiply, [x, row])
                    loop.values[many * t + w] = builder.add(loop.values[many * t + w], product)
    return loop.values


def _pair_sums(visit: _Visit) -> list[Value]:
    """Each (row of planes, row of weights) as eight words to be summed, in the form `PAIRS`."""
    builder, kind = visit.builder, ir.VectorType(I32, 8)
    halves, small = ir.VectorType(_I16, 16), ir.VectorType(_I8, 32)
    multiply, many = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, [small] * 2), len(visit.starts)
    summed = declare(builder, "llvm.x86.avx2.pmadd.wd", kind, [halves] * 2)
    above = builder.shl(visit.padded, I64(1))
    places = visit.rows(above, 1)
    turn = STEP if visit.ahead else STEP // 2
    with Loop(builder, visit.count_if(23), turn, [halves] * (len(visit.starts) * len(places))) as loop:
        visit.ask(loop.index)
        for step in range(0, turn, 32):
            at = plus(builder, loop.index, step)
            weights = [read(builder, builder.gep(start, [at]), small) for start in visit.starts]
            for t, place in enumerate(places):
                x = read(builder, builder.gep(place, [at]), small)
                for w, row in enumerate(weights):
                    product = builder.call(multiply, [x, row])
                    loop.values[many * t + w] = builder.add(loop.values[many * t + w], product)
    sums = [builder.call(summed, [total, constant(halves, 1)]) for total in loop.values]
    sums = _add_digits(visit, visit.count_if(32), above, sums)
    sums = [builder.shl(total, constant(kind, 16)) for total in sums]
    return _add_digits(visit, visit.count, I64(0), sums)


def _byte_sums(visit: _Visit, words: int, name: str) -> list[Value]:
    """Each (row of planes, row of weights) as some words to be summed, in the form `BYTES`."""
    builder, kind = visit.builder, ir.VectorType(I32, words)
    multiply, many = declare(builder, name, kind, [kind] * 3), len(visit.starts)
    sums, size = len(visit.starts) * len(visit.planes), 4 * words
    planes = builder.lshr(visit.kept, I64(3))
    with Loop(builder, planes, 1, [kind] * sums) as each:
        first = [builder.shl(total, constant(kind, 8)) for total in each.values]
        plane = builder.sub(plus(builder, planes, -1), each.index)
        places = visit.rows(builder.mul(plane, visit.padded), 1)
        with Loop(builder, visit.count, STEP, [kind] * sums, first) as loop:
            visit.ask(loop.index)
            for step in range(0, STEP, size):
                at = plus(builder, loop.index, step)
                weights = [read(builder, builder.gep(start, [at]), kind) for start in visit.starts]
                for t, place in enumerate(places):
                    x = read(builder, builder.gep(place, [at]), kind)
                    for w, row in enumerate(weights):
                        loop.values[many * t + w] = builder.call(multiply, [loop.values[many * t + w], x, row])
        each.values = loop.values
    return each.values


def _word_sums(visit: _Visit) -> list[Value]:
    """Each (row of planes, row of weights) as eight words to be summed, in the form `WORDS`."""
    builder, kind, many = visit.builder, ir.VectorType(I32, 8), len(visit.starts)
    with Loop(builder, visit.count, 8, [kind] * (len(visit.starts) * len(visit.planes))) as loop:
        at = loop.index
        weights = [
            builder.sext(read(builder, builder.gep(start, [at]), ir.VectorType(_I8, 8)), kind) for start in visit.starts
        ]
        for t, place in enumerate(visit.rows(I64(0), 4)):
            x = read(builder, builder.gep(place, [builder.shl(at, I64(2))]), kind)
            for w, row in enumerate(weights):
                loop.values[many * t + w] = builder.add(loop.values[many * t + w], builder.mul(x, row))
    return loop.values


def _sums(context: Context, visit: _Visit) -> list[Value]:
    if form_of(context) == BYTES:
        if has_feature(context, "avx512vnni"):
            return _byte_sums(visit, 16, "llvm.x86.avx512.vpdpbusd.512")
        return _byte_sums(visit, 8, "llvm.x86.avx512.vpdpbusd.256")
    return _pair_sums(visit) if form_of(context) == PAIRS else _word_sums(visit)


def _across(builder: Builder, vectors: list[Value]) -> list[Value]:
    """The sum of each vector's lanes: halves are added to eight lanes, neighbours up to four vectors' sums in one."""
    out = []
    for first in range(0, len(vectors), 4):
        four = [_halved(builder, v) for v in vectors[first : first + 4]]
        four += [four[-1]] * (4 - len(four))
        two = [_neighbours(builder, four[0], four[1]), _neighbours(builder, four[2], four[3])]
        one = _neighbours(builder, two[0], two[1])
        low, high = _part(builder, one, range(4)), _part(builder, one, range(4, 8))
        total = builder.add(low, high)
        out += [builder.extract_element(total, I32(i)) for i in range(4)]
    return out[: len(vectors)]


def _halved(builder: Builder, vector: Value) -> Value:
    while vector.type.count > 8:
        half = vector.type.count // 2
        vector = builder.add(_part(builder, vector, range(half)), _part(builder, vector, range(half, 2 * half)))
    return vector


def _part(builder: Builder, vector: Value, places: range) -> Value:
    order = ir.Constant(ir.VectorType(I32, len(places)), list(places))
    return builder.shuffle_vector(vector, vector, order)


def _neighbours(builder: Builder, a: Value, b: Value) -> Value:
    """Sums of neighbours within each half of eight lanes: two of a, two of b."""
    even, odd = ([base + odd for base in (0, 2, 8, 10, 4, 6, 12, 14)] for odd in (0, 1))
    kind = ir.VectorType(I32, 8)
    return builder.add(*(builder.shuffle_vector(a, b, ir.Constant(kind, order)) for order in (even, odd)))


def _visit(rows: int) -> Callable[..., Value]:
    """Code for ``u[t + i, j + offset] += Σ_k weights[j, k]·x[t + i, k]`` for this many rows i, and rows j of weights.

    Half of those j (see `weights_of`) begin at ``j0`` and end before ``end0``, the others at ``j1`` and before ``end1``. k
    goes from ``first`` through ``count`` weights, both multiples of `STEP`. weights int8; planes [rows, bytes] uint8 of
    words padded to ``padded``, of which ``kept`` top bits are used; u uint32.
    """

    @vector_code
    def visit(typing_context, weights, j0, end0, j1, end1, planes, t, first, count, padded, kept, u, offset):  # type: ignore[no-untyped-def]
        def code(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
            weights, planes, u = (array(context, builder, signature, args, place) for place in (0, 5, 11))
            width, size, columns = (builder.extract_value(each.shape, 1) for each in (weights, planes, u))
            t, first, kept = args[6], args[7], args[10]
            places = [builder.gep(planes.data, [builder.mul(plus(builder, t, i), size)]) for i in range(rows)]
            half = _weights(context, rows) // 2
            taken, inside, starts = [], [], []
            for i in range(2 * half):
                row = plus(builder, args[1 if i < half else 3], i % half)
                inside.append(builder.icmp_signed("<", row, args[2 if i < half else 4]))
                taken.append(builder.select(inside[i], row, args[1]))
                starts.append(builder.gep(weights.data, [builder.add(builder.mul(taken[i], width), first)]))
            vectors = _sums(context, _Visit(builder, starts, places, list(args[7:11])))
            totals = _across(builder, vectors)
            shift = builder.trunc(builder.sub(I64(32), kept), I32)
            for i, total in enumerate(totals):
                value = builder.select(inside[i % (2 * half)], builder.shl(total, shift), I32(0))
                row = builder.mul(plus(builder, t, i // (2 * half)), columns)
                column = builder.add(taken[i % (2 * half)], args[12])
                place = builder.gep(u.data, [builder.add(row, column)])
                builder.store(builder.add(builder.load(place), value), place)
            return context.get_dummy_value()

        size = types.intp
        return types.void(weights, size, size, size, size, planes, size, size, size, size, size, u, size), code

    return visit


visit_1, visit_2, visit_3, visit_4, visit_6 = (_visit(rows) for rows in (1, 2, 3, 4, 6))
