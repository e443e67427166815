"""Steps on every word of a polynomial, written as LLVM vectors: residues in, residues out, one pass each.

Arrays are contiguous ``uint32`` of one size, a multiple of 16 words. Factors are in Montgomery form (``w·2^32 mod p``), so
that one reduction of a 64-bit product gives the residue. Each takes its arrays, then p and ``-1/p mod 2^32``, then others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import for_range

from veil.kernels.cpu_modulus import Modulus
from veil.kernels.cpu_vector import I64, array, load, splat, store, vector_code, vector_words


def _each_word(operands: Sequence[Any], count: int, written: Sequence[int], step: Callable[..., Sequence[Any]]) -> Any:
    """Code of a pass: ``step(modulus, *vectors, *others)`` gives the new words of the ``written`` arrays."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [array(context, builder, signature, args, place) for place in range(count)]
        width = vector_words(context)
        prime, inverse, *others = args[count:]
        modulus = Modulus(builder, width, prime, inverse)
        vectors = [splat(builder, other, modulus.kind) for other in others]
        turns = builder.udiv(arrays[0].nitems, I64(width))
        with for_range(builder, turns) as turn:
            place = builder.mul(turn.index, I64(width))
            pointers = [builder.gep(one.data, [place]) for one in arrays]
            words = [load(builder, pointer, modulus.kind) for pointer in pointers]
            for which, value in zip(written, step(modulus, *words, *vectors), strict=True):
                store(builder, pointers[which], value)
        return context.get_dummy_value()

    scalars = [types.uint32] * (len(operands) - count)
    return types.void(*operands[:count], *scalars), code


@vector_code
def add_key_product(typing_context, total, d0, d1, k0, k1, p, pn):  # type: ignore[no-untyped-def]
    """``total += d0·k0 + d1·k1``."""

    def step(m: Modulus, total: Any, d0: Any, d1: Any, k0: Any, k1: Any) -> list[Any]:
        return [m.whole(m.plus(total, m.reduced(m.products(d0, k0), m.products(d1, k1))))]

    return _each_word([total, d0, d1, k0, k1, p, pn], 5, [0], step)


@vector_code
def tree_step(typing_context, low, high, moved, d0, d1, k0, k1, monomial, p, pn):  # type: ignore[no-untyped-def]
    """Both children of a node of the expansion.

    ``s = moved + d0·k0 + d1·k1``, then ``low, high = low + s, (low - s)·monomial``.
    """

    def step(m: Modulus, low: Any, high: Any, moved: Any, d0: Any, d1: Any, k0: Any, k1: Any, monomial: Any) -> list[Any]:
        switched = m.whole(m.plus(moved, m.reduced(m.products(d0, k0), m.products(d1, k1))))
        total, difference = m.plus(low, switched), m.minus(low, switched)
        return [m.lower(total, m.once), m.lower(m.reduced(m.products(difference, monomial)), m.once)]

    return _each_word([low, high, moved, d0, d1, k0, k1, monomial, p, pn], 8, [0, 1], step)


@vector_code
def subtract_scale(typing_context, out, values, correction, p, pn, factor):  # type: ignore[no-untyped-def]
    """``out = (values - correction)·factor``."""

    def step(m: Modulus, out: Any, values: Any, correction: Any, factor: Any) -> list[Any]:
        return [m.lower(m.reduced(m.products(m.minus(values, correction), factor)), m.once)]

    return _each_word([out, values, correction, p, pn, factor], 3, [0], step)


@vector_code
def scale(typing_context, out, values, p, pn, factor):  # type: ignore[no-untyped-def]
    """``out = values·factor``."""

    def step(m: Modulus, out: Any, values: Any, factor: Any) -> list[Any]:
        return [m.lower(m.reduced(m.products(values, factor)), m.once)]

    return _each_word([out, values, p, pn, factor], 2, [0], step)


@vector_code
def add_product(typing_context, total, x, y, p, pn):  # type: ignore[no-untyped-def]
    """``total += x·y``."""

    def step(m: Modulus, total: Any, x: Any, y: Any) -> list[Any]:
        return [m.whole(m.plus(total, m.reduced(m.products(x, y))))]

    return _each_word([total, x, y, p, pn], 3, [0], step)


@vector_code
def centre(typing_context, out, values, p, pn, offset, ratio, half):  # type: ignore[no-untyped-def]
    """Residues of another modulus, centred, modulo p and below 2p.

    ``offset`` is -modulus mod p, ``ratio`` ⌊2^32/p⌋, ``half`` half of the other modulus.
    """

    def step(m: Modulus, out: Any, values: Any, offset: Any, ratio: Any, half: Any) -> list[Any]:
        builder = m.builder
        upper = builder.icmp_unsigned(">", values, half)
        shifted = builder.add(values, builder.select(upper, offset, ir.Constant(m.kind, None)))
        return [builder.sub(shifted, builder.mul(m.high(shifted, ratio), m.once))]

    return _each_word([out, values, p, pn, offset, ratio, half], 2, [0], step)
