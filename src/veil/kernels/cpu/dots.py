"""The inner loops of the online product: two rows of int8 weights with some rows of words, sums in registers.

Modulo 2^32 a word is the sum of its digits, and digits are what processors multiply fastest. How a row's words are laid out
(its *planes*) depends on the machine's `form`, and on ``kept``, how many top bits of the words are used:

- `BYTES`, where the processor multiplies bytes with int8 (VNNI): a plane of bytes for each 8 kept bits, lowest first.
- `PAIRS`, elsewhere with AVX2: a plane of signed 16-bit digits (``vpmaddwd``). Above it, with 23 bits kept, one of 7-bit
  digits: they count modulo 2^7 only, and two products of 7-bit digits fit 16 bits (``vpmaddubsw``, twice as many at once).
  With 32 bits kept, a second plane of 16-bit digits.
- `WORDS`, on any other machine: the words themselves.

The highest digit comes first; what it gives is shifted up in place, and the next digit's products are added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from veil.kernels.cpu.vector import (
    I32,
    I64,
    Loop,
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

WORDS, PAIRS, BYTES = 0, 1, 2
STEP = 64
"""Weights in one turn of the loops; planes are padded with zeros to whole turns."""
AHEAD_BYTES = (4096, 1536)
"""How far ahead memory is asked for where rows are few; what the first asks for may be dropped when much is on its way."""
_I8, _I16 = ir.IntType(8), ir.IntType(16)
_FEW = 2  # rows for which weights are asked for ahead


def _form(context: Any) -> int:
    if has_feature(context, "avx512vnni") or has_feature(context, "avxvnni"):
        return BYTES
    return PAIRS if has_feature(context, "avx2") else WORDS


@vector_code
def take_apart(typing_context, words, padded, kept, planes, t):  # type: ignore[no-untyped-def]
    """Row t of planes [rows, bytes] from words [``padded``] uint32, the bits that count at their top."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, planes = (array(context, builder, signature, args, place) for place in (0, 3))
        _, padded, kept, _, t = args
        row = builder.gep(planes.data, [builder.mul(t, builder.extract_value(planes.shape, 1))])
        kind = ir.VectorType(I32, 16)
        with Loop(builder, padded, kind.count, []) as loop:
            x = read(builder, builder.gep(words.data, [loop.index]), kind)
            shape, double = _form(context), builder.shl(loop.index, I64(1))
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


def _put(builder: Any, row: Any, offset: Any, values: Any) -> None:
    place = builder.gep(row, [offset])
    builder.store(values, builder.bitcast(place, values.type.as_pointer()), align=1)


@vector_code
def form(typing_context):  # type: ignore[no-untyped-def]
    """How this machine's planes are laid out: `WORDS`, `PAIRS` or `BYTES`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return I64(_form(context))

    return types.intp(), code


class _Visit:
    """What one visit works on: where its two rows of weights and its rows of planes begin, and how far they reach."""

    def __init__(self, builder: Any, starts: list[Any], planes: list[Any], sizes: list[Any]) -> None:
        self.builder, self.starts, self.planes = builder, starts, planes
        self.first, self.count, self.padded, self.kept = sizes
        self.ahead = len(planes) <= _FEW

    def rows(self, above: Any, digit_bytes: int) -> list[Any]:
        """Where the rows' digits begin in a plane ``above`` bytes after the lowest."""
        offset = self.builder.add(above, self.builder.mul(self.first, I64(digit_bytes)))
        return [self.builder.gep(place, [offset]) for place in self.planes]

    def count_if(self, kept: int) -> Any:
        return self.builder.select(self.builder.icmp_signed("==", self.kept, I64(kept)), self.count, I64(0))

    def ask(self, index: Any) -> None:
        """Ask for weights that later visits read."""
        if self.ahead:
            for start in self.starts:
                for distance in AHEAD_BYTES:
                    prefetch(self.builder, self.builder.gep(start, [plus(self.builder, index, distance)]))


def _add_digits(visit: _Visit, count: Any, above: Any, sums: list[Any]) -> list[Any]:
    """Sums of eight words each, plus weights times signed 16-bit digits in a plane ``above`` bytes after the lowest."""
    builder, kind, digits = visit.builder, ir.VectorType(I32, 8), ir.VectorType(_I16, 16)
    multiply = declare(builder, "llvm.x86.avx2.pmadd.wd", kind, [digits] * 2)
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
                    loop.values[2 * t + w] = builder.add(loop.values[2 * t + w], product)
    return loop.values


def _pair_sums(visit: _Visit) -> list[Any]:
    """Each (row of planes, row of weights) as eight words to be summed, in the form `PAIRS`."""
    builder, kind = visit.builder, ir.VectorType(I32, 8)
    halves, small = ir.VectorType(_I16, 16), ir.VectorType(_I8, 32)
    multiply = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, [small] * 2)
    summed = declare(builder, "llvm.x86.avx2.pmadd.wd", kind, [halves] * 2)
    above = builder.shl(visit.padded, I64(1))
    places = visit.rows(above, 1)
    turn = STEP if visit.ahead else STEP // 2
    with Loop(builder, visit.count_if(23), turn, [halves] * (2 * len(places))) as loop:
        visit.ask(loop.index)
        for step in range(0, turn, 32):
            at = plus(builder, loop.index, step)
            weights = [read(builder, builder.gep(start, [at]), small) for start in visit.starts]
            for t, place in enumerate(places):
                x = read(builder, builder.gep(place, [at]), small)
                for w, row in enumerate(weights):
                    product = builder.call(multiply, [x, row])
                    loop.values[2 * t + w] = builder.add(loop.values[2 * t + w], product)
    sums = [builder.call(summed, [total, constant(halves, 1)]) for total in loop.values]
    sums = _add_digits(visit, visit.count_if(32), above, sums)
    sums = [builder.shl(total, constant(kind, 16)) for total in sums]
    return _add_digits(visit, visit.count, I64(0), sums)


def _byte_sums(visit: _Visit, words: int, name: str) -> list[Any]:
    """Each (row of planes, row of weights) as some words to be summed, in the form `BYTES`."""
    builder, kind = visit.builder, ir.VectorType(I32, words)
    multiply = declare(builder, name, kind, [kind] * 3)
    sums, size = 2 * len(visit.planes), 4 * words
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
                        loop.values[2 * t + w] = builder.call(multiply, [loop.values[2 * t + w], x, row])
        each.values = loop.values
    return each.values


def _word_sums(visit: _Visit) -> list[Any]:
    """Each (row of planes, row of weights) as eight words to be summed, in the form `WORDS`."""
    builder, kind = visit.builder, ir.VectorType(I32, 8)
    with Loop(builder, visit.count, 8, [kind] * (2 * len(visit.planes))) as loop:
        at = loop.index
        weights = [
            builder.sext(read(builder, builder.gep(start, [at]), ir.VectorType(_I8, 8)), kind) for start in visit.starts
        ]
        for t, place in enumerate(visit.rows(I64(0), 4)):
            x = read(builder, builder.gep(place, [builder.shl(at, I64(2))]), kind)
            for w, row in enumerate(weights):
                loop.values[2 * t + w] = builder.add(loop.values[2 * t + w], builder.mul(x, row))
    return loop.values


def _sums(context: Any, visit: _Visit) -> list[Any]:
    if _form(context) == BYTES:
        if has_feature(context, "avx512vnni"):
            return _byte_sums(visit, 16, "llvm.x86.avx512.vpdpbusd.512")
        return _byte_sums(visit, 8, "llvm.x86.avx512.vpdpbusd.256")
    return _pair_sums(visit) if _form(context) == PAIRS else _word_sums(visit)


def _across(builder: Any, vectors: list[Any]) -> list[Any]:
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


def _halved(builder: Any, vector: Any) -> Any:
    while vector.type.count > 8:
        half = vector.type.count // 2
        vector = builder.add(_part(builder, vector, range(half)), _part(builder, vector, range(half, 2 * half)))
    return vector


def _part(builder: Any, vector: Any, places: range) -> Any:
    order = ir.Constant(ir.VectorType(I32, len(places)), list(places))
    return builder.shuffle_vector(vector, vector, order)


def _neighbours(builder: Any, a: Any, b: Any) -> Any:
    """Sums of neighbours within each half of eight lanes: two of a, two of b."""
    even, odd = ([base + odd for base in (0, 2, 8, 10, 4, 6, 12, 14)] for odd in (0, 1))
    kind = ir.VectorType(I32, 8)
    return builder.add(*(builder.shuffle_vector(a, b, ir.Constant(kind, order)) for order in (even, odd)))


def _visit(rows: int) -> Callable[..., Any]:
    """Code for ``u[t + i, c] += Σ_k weights[at + k]·x[t + i, first + k]`` for this many rows i and two (at, c).

    weights int8, ``at`` counted in all of it; planes [rows, bytes] uint8 of words padded to ``padded``, of which ``kept``
    top bits are used; ``first`` and ``count`` are multiples of `STEP`; u uint32. Where both c are one, it is added once.
    """

    @vector_code
    def visit(typing_context, weights, at0, at1, planes, t, first, count, padded, kept, u, c0, c1):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, planes, u = (array(context, builder, signature, args, place) for place in (0, 3, 9))
            size, columns = builder.extract_value(planes.shape, 1), builder.extract_value(u.shape, 1)
            t, kept = args[4], args[8]
            places = [builder.gep(planes.data, [builder.mul(plus(builder, t, i), size)]) for i in range(rows)]
            starts = [builder.gep(weights.data, [at]) for at in args[1:3]]
            vectors = _sums(context, _Visit(builder, starts, places, list(args[5:9])))
            totals = _across(builder, vectors)
            shift = builder.trunc(builder.sub(I64(32), kept), I32)
            same = builder.icmp_signed("==", args[10], args[11])
            for i in range(rows):
                row = builder.mul(plus(builder, t, i), columns)
                for w in range(2):
                    place = builder.gep(u.data, [builder.add(row, args[10 + w])])
                    value = builder.shl(totals[2 * i + w], shift)
                    if w:
                        value = builder.select(same, I32(0), value)
                    builder.store(builder.add(builder.load(place), value), place)
            return context.get_dummy_value()

        size = types.intp
        return types.void(weights, size, size, planes, size, size, size, size, size, u, size, size), code

    return visit


visit_1, visit_2, visit_3, visit_4, visit_6 = (_visit(rows) for rows in (1, 2, 3, 4, 6))
