"""Arithmetic modulo a prime below 2^30 on LLVM vectors of 32-bit words: Shoup's, for known factors, and Montgomery's."""

from __future__ import annotations

from llvmlite import ir

from veil.kernels.cpu.vector import I32, I64, Builder, Value, constant, splat

Pairs = tuple[Value, Value]
"""64-bit vectors that belong to the even and the odd words of a vector."""


class Modulus:
    """Vectors of one prime p; ``inverse`` is ``-1/p mod 2^32`` where Montgomery's products are wanted."""

    def __init__(self, builder: Builder, width: int, prime: Value, inverse: Value = None) -> None:
        self.builder = builder
        self.kind = ir.VectorType(I32, width)
        self._pairs = ir.VectorType(I64, width // 2)
        self._low, self._up = constant(self._pairs, 0xFFFFFFFF), constant(self._pairs, 32)
        self._prime = self._wide(prime)
        self._inverse = None if inverse is None else self._wide(inverse)
        self.once = splat(builder, prime, self.kind)
        self.twice = builder.add(self.once, self.once)

    def lower(self, value: Value, bound: Value) -> Value:
        """``value`` or ``value - bound``, the one that does not wrap."""
        less = self.builder.sub(value, bound)
        return self.builder.select(self.builder.icmp_unsigned("<", value, less), value, less)

    def whole(self, value: Value) -> Value:
        """A value below 4p, below p."""
        return self.lower(self.lower(value, self.twice), self.once)

    def plus(self, left: Value, right: Value) -> Value:
        """A sum, not reduced."""
        return self.builder.add(left, right)

    def minus(self, left: Value, right: Value) -> Value:
        """``left - right + p``, not reduced."""
        return self.builder.add(self.builder.sub(left, right), self.once)

    def times(self, value: Value, factor: Value, companion: Value) -> Value:
        """``value·factor`` modulo p, below 2p, for any 32-bit value: Shoup's product (Harvey, arXiv 1205.2926)."""
        quotient = self.builder.mul(self.high(value, companion), self.once)
        return self.builder.sub(self.builder.mul(value, factor), quotient)

    def high(self, left: Value, right: Value) -> Value:
        """The upper halves of the products of 32-bit words."""
        return self._upper(self.products(left, right))

    def products(self, left: Value, right: Value) -> Pairs:
        """The 64-bit products of 32-bit words."""
        builder = self.builder
        (even, odd), (even_right, odd_right) = self._split(left), self._split(right)
        return builder.mul(even, even_right), builder.mul(odd, odd_right)

    def reduced(self, first: Pairs, second: Pairs | None = None) -> Value:
        """``(first + second)·2^-32`` modulo p, below ``sum/2^32 + p``: Montgomery's reduction."""
        builder = self.builder
        halves = []
        for place, value in enumerate(first):
            if second is not None:
                value = builder.add(value, second[place])
            factor = builder.mul(builder.and_(value, self._low), self._inverse)
            halves.append(builder.add(value, builder.mul(builder.and_(factor, self._low), self._prime)))
        return self._upper((halves[0], halves[1]))

    def _split(self, words: Value) -> Pairs:
        pairs = self.builder.bitcast(words, self._pairs)
        return self.builder.and_(pairs, self._low), self.builder.lshr(pairs, self._up)

    def _upper(self, pairs: Pairs) -> Value:
        width = self.kind.count
        even, odd = (self.builder.bitcast(value, self.kind) for value in pairs)
        order = [2 * (lane // 2) + 1 + (width if lane & 1 else 0) for lane in range(width)]
        return self.builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(I32, width), order))

    def _wide(self, word: Value) -> Value:
        nothing = ir.Constant(self._pairs, ir.Undefined)
        first = self.builder.insert_element(nothing, self.builder.zext(word, I64), I32(0))
        lanes = ir.Constant(ir.VectorType(I32, self._pairs.count), [0] * self._pairs.count)
        return self.builder.shuffle_vector(first, nothing, lanes)
