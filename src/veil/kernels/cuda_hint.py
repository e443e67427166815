"""Triton kernels that build the hint on the device, and the client's products with a secret."""

from __future__ import annotations

import triton
import triton.language as tl

from veil.kernels.cuda_ntt import (
    COLUMNS,
    DEGREE_INVERSE,
    FIRST_INVERSE,
    INNER_DEGREE_INVERSE,
    NEGATIVE,
    PRIME,
    RATIO,
    SQUARE,
    WORD,
    forward,
    inverse,
    reduce,
    times,
)


@triton.jit
def signed_residue(value, row, p):  # type: ignore[no-untyped-def]
    """Any int32 modulo p."""
    bits = value.to(tl.uint32, bitcast=True)
    r = reduce(bits - tl.umulhi(bits, tl.load(row + RATIO)) * p, p)
    wrapped = reduce(r - tl.load(row + WORD) + p, p)
    return tl.where(value < 0, wrapped, r)


@triton.jit
def signed_points(values, out, twiddles, words, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Signed polynomials [C, 2^LOG] → points of both outer primes [C, 2, 2^LOG]; grid (C, prime)."""
    size: tl.constexpr = 1 << LOG
    e = tl.arange(0, size)
    c, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    x = signed_residue(tl.load(values + c * size + e), row, p)
    tl.store(out + (2 * c + i) * size + e, forward(x, twiddles + 2 * i * size, p, pn, LOG))


@triton.jit
def matrix_limbs(a, out, width, N_INNER: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Public polynomials [C, n] → the transposed stack of their negacyclic matrices as signed bytes [4, n, width].

    Entry (j, c·n + k) is the coefficient of X^j in ``a_c(1/X)·X^k`` with the sign of the inner product's convention:
    ``a_c[k - j]`` for k ≥ j, ``-a_c[n + k - j]`` below. Its four bytes stand for ``Σ_b byte_b·2^(8b)`` modulo 2^32.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1)
    k = column % N_INNER - j
    inside = column < width
    value = tl.load(a + (column - column % N_INNER) + (k + N_INNER) % N_INNER, mask=inside, other=0)
    value = tl.where(k < 0, 0 - value, value)
    store_limbs(value, out + j.to(tl.int64) * width + column, N_INNER * tl.cast(width, tl.int64), inside, 4)


@triton.jit
def store_limbs(value, at, plane, inside, LIMBS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Words below 2^(8·LIMBS) as balanced bytes: ``Σ_b byte_b·2^(8b)``, modulo 2^(8·LIMBS)."""
    balanced = (value + tl.full([1], 0x80808080, dtype=tl.uint32)) ^ tl.full([1], 0x80808080, dtype=tl.uint32)
    for b in tl.static_range(LIMBS):
        tl.store(at + b * plane, ((balanced >> (8 * b)) & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True), mask=inside)


@triton.jit
def round_centred(values, out, count, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``round(x / 2^(32-bits))``, centred."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(values + at, mask=at < count, other=0)
    half = tl.full([1], 1, dtype=tl.uint32) << (31 - BITS)
    # An arithmetic shift extends the sign of the rounded top bits.
    tl.store(out + at, (x + half).to(tl.int32, bitcast=True) >> (32 - BITS), mask=at < count)


@triton.jit
def fold_columns(  # type: ignore[no-untyped-def]
    points, out, inverse_rotations, folds, words, FOLD: tl.constexpr, LEAVES: tl.constexpr, N: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Points of a block's columns [n, 2, N] → Ĥ [G, I, 2, N]; grid (leaf, prime, tile)."""
    leaf, i = tl.program_id(0), tl.program_id(1)
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    p, pn = tl.load(words + i * COLUMNS + PRIME), tl.load(words + i * COLUMNS + NEGATIVE)
    for r in tl.static_range(FOLD):
        moved = tl.load(inverse_rotations + r * N + e)
        total = tl.zeros([BLOCK], dtype=tl.uint32)
        for j in tl.static_range(FOLD):
            x = tl.load(points + ((leaf * FOLD + j) * 2 + i) * N + moved)
            total = reduce(total + reduce(times(x, tl.load(folds + (i * FOLD + j) * N + e), p, pn), p), p)
        tl.store(out + ((r * LEAVES + leaf) * 2 + i) * N + e, total)


@triton.jit
def secret_product(public, secret, out, twiddles, words, LOG: tl.constexpr, INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Public points [C, 2, 2^LOG] times secrets [T, 2, 2^LOG] → exact integers modulo 2^32 [T, C, 2^LOG]; grid (C, T)."""
    size: tl.constexpr = 1 << LOG
    e = tl.arange(0, size)
    c, t = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    secret += 2 * t * size
    out += t * tl.num_programs(0) * size
    p1, p2 = tl.load(words + PRIME), tl.load(words + COLUMNS + PRIME)
    pn1, pn2 = tl.load(words + NEGATIVE), tl.load(words + COLUMNS + NEGATIVE)
    x1 = _residue(public + 2 * c * size, secret, words, twiddles, p1, pn1, e, LOG, INNER)
    x2 = _residue(public + (2 * c + 1) * size, secret + size, words + COLUMNS, twiddles + 2 * size, p2, pn2, e, LOG, INNER)
    difference = x2 - reduce(x1, p2) + p2
    lift = reduce(times(difference, tl.load(words + COLUMNS + FIRST_INVERSE), p2, pn2), p2)
    x = x1.to(tl.uint64) + p1.to(tl.uint64) * lift.to(tl.uint64)
    whole = p1.to(tl.uint64) * p2.to(tl.uint64)
    low = x.to(tl.uint32)
    tl.store(out + c * size + e, tl.where(x > whole // 2, low - whole.to(tl.uint32), low))


@triton.jit
def _residue(public, secret, row, twiddles, p, pn, e, LOG: tl.constexpr, INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    x = times(tl.load(public + e), tl.load(secret + e), p, pn)
    x = times(x, tl.load(row + SQUARE), p, pn)
    factor = tl.load(row + INNER_DEGREE_INVERSE) if INNER else tl.load(row + DEGREE_INVERSE)
    return inverse(x, twiddles, factor, p, pn, LOG)
