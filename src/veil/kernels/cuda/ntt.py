"""Modular arithmetic and transforms as Triton functions; one program transforms one polynomial.

Three stages of butterflies go at once (radix 8): the values are split into eight parts, lazy butterflies (Harvey, arXiv
1205.2926) run between them, and they are joined again; Triton moves the values between threads through shared memory. A
factor w is kept as ``w·2^32 mod p`` and multiplied by Montgomery's method.
"""

from __future__ import annotations

import triton
import triton.language as tl

from veil.kernels.cuda.constants import RATIO, WORD

# Arithmetic ----------------------------------------------------------------------------------------------------------


@triton.jit
def montgomery(value, p, pn):  # type: ignore[no-untyped-def]
    """``value·2^-32`` modulo p, below ``value/2^32 + p``."""
    m = value.to(tl.uint32) * pn
    return ((value + m.to(tl.uint64) * p) >> 32).to(tl.uint32)


@triton.jit
def times(value, factor, p, pn):  # type: ignore[no-untyped-def]
    """``value·factor·2^-32`` modulo p, below 2p while ``value·factor < p·2^32``."""
    return montgomery(value.to(tl.uint64) * factor.to(tl.uint64), p, pn)


@triton.jit
def reduce(value, p):  # type: ignore[no-untyped-def]
    """A value below 2p, below p."""
    return tl.minimum(value, value - p)


@triton.jit
def signed_residue(value, row, p):  # type: ignore[no-untyped-def]
    """Any int32 modulo p, whose constants are ``row``."""
    bits = value.to(tl.uint32, bitcast=True)
    r = reduce(bits - tl.umulhi(bits, tl.load(row + RATIO)) * p, p)
    wrapped = reduce(r - tl.load(row + WORD) + p, p)
    return tl.where(value < 0, wrapped, r)


# Splitting and joining -----------------------------------------------------------------------------------------------


@triton.jit
def split4(y):  # type: ignore[no-untyped-def]
    """[count, 2, 2] → its four columns, in order."""
    even, odd = tl.split(y)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def quarters(x, GROUPS: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    """[GROUPS·4·PART] → the four quarters of each group, [GROUPS·PART] each."""
    y = tl.permute(tl.reshape(x, [GROUPS, 4, PART]), [0, 2, 1])
    return split4(tl.reshape(y, [GROUPS * PART, 2, 2]))


@triton.jit
def _join4(x0, x1, x2, x3, GROUPS: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    y = tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [GROUPS, PART, 4])
    return tl.reshape(tl.permute(y, [0, 2, 1]), [GROUPS * 4 * PART])


@triton.jit
def _eighths(x, GROUPS: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    y = tl.permute(tl.reshape(x, [GROUPS, 8, PART]), [0, 2, 1])
    even, odd = tl.split(tl.reshape(y, [GROUPS * PART, 2, 2, 2]))
    x0, x2, x4, x6 = split4(even)
    x1, x3, x5, x7 = split4(odd)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _join8(x0, x1, x2, x3, x4, x5, x6, x7, GROUPS: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    even = tl.join(tl.join(x0, x4), tl.join(x2, x6))
    odd = tl.join(tl.join(x1, x5), tl.join(x3, x7))
    y = tl.reshape(tl.join(even, odd), [GROUPS, PART, 8])
    return tl.reshape(tl.permute(y, [0, 2, 1]), [GROUPS * 8 * PART])


# Butterflies ---------------------------------------------------------------------------------------------------------


@triton.jit
def _down(u, v, w, p, pn):  # type: ignore[no-untyped-def]
    """A forward butterfly of values below 4p."""
    u = reduce(u, 2 * p)
    t = times(v, w, p, pn)
    return u + t, u - t + 2 * p


@triton.jit
def _up(u, v, w, p, pn):  # type: ignore[no-untyped-def]
    """An inverse butterfly of values below 2p."""
    return reduce(u + v, 2 * p), times(u - v + 2 * p, w, p, pn)


@triton.jit
def _forward_8(x, twiddles, p, pn, GROUPS: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    x0, x1, x2, x3, x4, x5, x6, x7 = _eighths(x, GROUPS, PART)
    group = tl.arange(0, GROUPS * PART) // PART
    w = tl.load(twiddles + GROUPS + group)
    x0, x4 = _down(x0, x4, w, p, pn)
    x1, x5 = _down(x1, x5, w, p, pn)
    x2, x6 = _down(x2, x6, w, p, pn)
    x3, x7 = _down(x3, x7, w, p, pn)
    second = twiddles + 2 * GROUPS + 2 * group
    w = tl.load(second)
    x0, x2 = _down(x0, x2, w, p, pn)
    x1, x3 = _down(x1, x3, w, p, pn)
    w = tl.load(second + 1)
    x4, x6 = _down(x4, x6, w, p, pn)
    x5, x7 = _down(x5, x7, w, p, pn)
    third = twiddles + 4 * GROUPS + 4 * group
    x0, x1 = _down(x0, x1, tl.load(third), p, pn)
    x2, x3 = _down(x2, x3, tl.load(third + 1), p, pn)
    x4, x5 = _down(x4, x5, tl.load(third + 2), p, pn)
    x6, x7 = _down(x6, x7, tl.load(third + 3), p, pn)
    return _join8(x0, x1, x2, x3, x4, x5, x6, x7, GROUPS, PART)


@triton.jit
def _inverse_8(x, twiddles, p, pn, GROUPS: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    x0, x1, x2, x3, x4, x5, x6, x7 = _eighths(x, GROUPS, PART)
    group = tl.arange(0, GROUPS * PART) // PART
    third = twiddles + 4 * GROUPS + 4 * group
    x0, x1 = _up(x0, x1, tl.load(third), p, pn)
    x2, x3 = _up(x2, x3, tl.load(third + 1), p, pn)
    x4, x5 = _up(x4, x5, tl.load(third + 2), p, pn)
    x6, x7 = _up(x6, x7, tl.load(third + 3), p, pn)
    second = twiddles + 2 * GROUPS + 2 * group
    w = tl.load(second)
    x0, x2 = _up(x0, x2, w, p, pn)
    x1, x3 = _up(x1, x3, w, p, pn)
    w = tl.load(second + 1)
    x4, x6 = _up(x4, x6, w, p, pn)
    x5, x7 = _up(x5, x7, w, p, pn)
    w = tl.load(twiddles + GROUPS + group)
    x0, x4 = _up(x0, x4, w, p, pn)
    x1, x5 = _up(x1, x5, w, p, pn)
    x2, x6 = _up(x2, x6, w, p, pn)
    x3, x7 = _up(x3, x7, w, p, pn)
    return _join8(x0, x1, x2, x3, x4, x5, x6, x7, GROUPS, PART)


@triton.jit
def _forward_rest(x, twiddles, p, pn, GROUPS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last stage or two, of groups of SIZE neighbours (1, 2 or 4)."""
    if SIZE == 4:
        x0, x1, x2, x3 = split4(tl.reshape(x, [GROUPS, 2, 2]))
        group = tl.arange(0, GROUPS)
        w = tl.load(twiddles + GROUPS + group)
        x0, x2 = _down(x0, x2, w, p, pn)
        x1, x3 = _down(x1, x3, w, p, pn)
        x0, x1 = _down(x0, x1, tl.load(twiddles + 2 * GROUPS + 2 * group), p, pn)
        x2, x3 = _down(x2, x3, tl.load(twiddles + 2 * GROUPS + 2 * group + 1), p, pn)
        x = _join4(x0, x1, x2, x3, GROUPS, 1)
    if SIZE == 2:
        x0, x1 = tl.split(tl.reshape(x, [GROUPS, 2]))
        x0, x1 = _down(x0, x1, tl.load(twiddles + GROUPS + tl.arange(0, GROUPS)), p, pn)
        x = tl.reshape(tl.join(x0, x1), [2 * GROUPS])
    return x


@triton.jit
def _inverse_rest(x, twiddles, p, pn, GROUPS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first stage or two, of groups of SIZE neighbours (1, 2 or 4)."""
    if SIZE == 4:
        x0, x1, x2, x3 = split4(tl.reshape(x, [GROUPS, 2, 2]))
        group = tl.arange(0, GROUPS)
        x0, x1 = _up(x0, x1, tl.load(twiddles + 2 * GROUPS + 2 * group), p, pn)
        x2, x3 = _up(x2, x3, tl.load(twiddles + 2 * GROUPS + 2 * group + 1), p, pn)
        w = tl.load(twiddles + GROUPS + group)
        x0, x2 = _up(x0, x2, w, p, pn)
        x1, x3 = _up(x1, x3, w, p, pn)
        x = _join4(x0, x1, x2, x3, GROUPS, 1)
    if SIZE == 2:
        x0, x1 = tl.split(tl.reshape(x, [GROUPS, 2]))
        x0, x1 = _up(x0, x1, tl.load(twiddles + GROUPS + tl.arange(0, GROUPS)), p, pn)
        x = tl.reshape(tl.join(x0, x1), [2 * GROUPS])
    return x


# Transforms ----------------------------------------------------------------------------------------------------------


@triton.jit
def forward(x, twiddles, p, pn, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Coefficients [2^LOG] below 4p → points below p, in the order of `tables`; twiddles [2, 2^LOG]."""
    for s in tl.static_range(LOG // 3):
        x = _forward_8(x, twiddles, p, pn, 1 << (3 * s), 1 << (LOG - 3 * s - 3))
    x = _forward_rest(x, twiddles, p, pn, 1 << (LOG // 3 * 3), 1 << (LOG % 3))
    return reduce(reduce(x, 2 * p), p)


@triton.jit
def inverse(x, twiddles, factor, p, pn, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Points [2^LOG] below 2p → coefficients times ``factor`` (Montgomery form; 1/degree for the inverse), below p."""
    twiddles += 1 << LOG
    x = _inverse_rest(x, twiddles, p, pn, 1 << (LOG // 3 * 3), 1 << (LOG % 3))
    for s in tl.static_range(LOG // 3):
        x = _inverse_8(x, twiddles, p, pn, 1 << (LOG // 3 * 3 - 3 * s - 3), 1 << (LOG % 3 + 3 * s))
    return reduce(times(x, factor, p, pn), p)


def log2(degree: int) -> int:
    """The logarithm of a power of two."""
    return degree.bit_length() - 1


def warps(degree: int) -> int:
    """Warps of a program that transforms one polynomial of this degree."""
    return max(1, min(16, degree // 256))
