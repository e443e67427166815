"""Triton kernels of the outer layer: expansion, Ĥ product, combination, for a batch of masks at once.

Masks of a batch may use different public sets and different epochs' keys: ``sets`` and ``epochs`` [T] say which row of
the digits' and keys' stores each mask reads, so that nothing is copied.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from veil.kernels.cuda_ntt import (
    CENTRE,
    COLUMNS,
    CRT_INVERSE,
    DEGREE_INVERSE,
    NEGATIVE,
    PRIME,
    RATIO,
    SPECIAL,
    SPECIAL_INVERSE,
    SQUARE,
    centre,
    forward,
    inverse,
    montgomery,
    reduce,
    times,
)


@triton.jit
def key_product(digits, keys, points, i, p, pn, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """``Σ_j digits[j, i]·keys[j, i]`` over both digits of prime i, below 2p."""
    d0, k0 = tl.load(digits + i * N + points), tl.load(keys + i * N + points)
    d1, k1 = tl.load(digits + (3 + i) * N + points), tl.load(keys + (3 + i) * N + points)
    total = d0.to(tl.uint64) * k0.to(tl.uint64) + d1.to(tl.uint64) * k1.to(tl.uint64)
    return montgomery(total, p, pn)


@triton.jit
def children(u, switched, monomials, points, p, pn):  # type: ignore[no-untyped-def]
    """Both children of a node u and its switched image, all below p."""
    low = reduce(u + switched, p)
    high = reduce(times(u - switched + p, tl.load(monomials + points), p, pn), p)
    return low, high


@triton.jit
def tree_step(  # type: ignore[no-untyped-def]
    nodes, out, digits, digit_stride, sets, keys, key_stride, epochs, order, monomials, words, count,
    FIRST: tl.constexpr, LEAVES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One level of the ``b`` side: nodes [T, I, 3, N] (FIRST: b [T, 2, N]) → out [T, I, 3, N].

    The grid is (T, node·prime·tile).
    """
    tiles: tl.constexpr = N // BLOCK
    t = tl.program_id(0).to(tl.int64)
    job = tl.program_id(1)
    c, i = job // (3 * tiles), job // tiles % 3
    points = job % tiles * BLOCK + tl.arange(0, BLOCK)
    p, pn = tl.load(words + i * COLUMNS + PRIME), tl.load(words + i * COLUMNS + NEGATIVE)
    moved_points = tl.load(order + points)
    digits += tl.load(sets + t).to(tl.int64) * digit_stride + (count - 1 + c).to(tl.int64) * (6 * N)
    keys += tl.load(epochs + t).to(tl.int64) * key_stride
    if FIRST:
        factor = tl.load(words + i * COLUMNS + SPECIAL)  # 0 modulo P
        node = nodes + (2 * t + tl.minimum(i, 1)) * N
        u = reduce(times(tl.load(node + points), factor, p, pn), p)
        moved = reduce(times(tl.load(node + moved_points), factor, p, pn), p)
    else:
        node = nodes + ((t * LEAVES + c) * 3 + i) * N
        u = tl.load(node + points)
        moved = tl.load(node + moved_points)
    s = reduce(reduce(moved + key_product(digits, keys, points, i, p, pn, N), 2 * p), p)
    low, high = children(u, s, monomials + i * N, points, p, pn)
    tl.store(out + ((t * LEAVES + c) * 3 + i) * N + points, low)
    tl.store(out + ((t * LEAVES + c + count) * 3 + i) * N + points, high)


@triton.jit
def rest_of_special(values, twiddles, words, N: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Points modulo P → coefficients below P: what a division by P leaves over."""
    p, pn = tl.load(words + 2 * COLUMNS + PRIME), tl.load(words + 2 * COLUMNS + NEGATIVE)
    return inverse(values, twiddles + 4 * N, tl.load(words + 2 * COLUMNS + DEGREE_INVERSE), p, pn, LOG)


@triton.jit
def quotient(values, rest, i, twiddles, words, N: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """``(values - rest)/P`` modulo prime i: points and the centred rest's coefficients → points below p."""
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    half = tl.load(words + 2 * COLUMNS + PRIME) // 2
    correction = centre(rest, tl.load(row + CENTRE + 2), tl.load(row + RATIO), half, p)
    correction = forward(correction, twiddles + 2 * i * N, p, pn, LOG)
    return reduce(times(values - correction + p, tl.load(row + SPECIAL_INVERSE), p, pn), p)


@triton.jit
def divide_leaves(nodes, out, twiddles, words, N: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Nodes [B, 3, N] modulo Q·P → leaves [B, 2, N] modulo Q; one leaf a program."""
    e = tl.arange(0, N)
    b = tl.program_id(0).to(tl.int64)
    node = nodes + b * (3 * N)
    rest = rest_of_special(tl.load(node + 2 * N + e), twiddles, words, N, LOG)
    for i in range(2):
        leaf = quotient(tl.load(node + i * N + e), rest, i, twiddles, words, N, LOG)
        tl.store(out + (2 * b + i) * N + e, leaf)


@triton.jit
def product(  # type: ignore[no-untyped-def]
    hint, leaves, out, words, masks, rows,
    LEAVES: tl.constexpr, N: tl.constexpr,
    MASKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Ĥ [rows, I, 2, N] times leaves [T, I, 2, N] → [T, rows, 2, N]: a tile of ROWS × MASKS sums a point.

    Sums of I products below 2^54 need no reduction. Programs that share a part of Ĥ have neighbouring numbers.
    """
    groups = tl.cdiv(masks, MASKS)
    row_groups = tl.cdiv(rows, ROWS)
    job = tl.program_id(0)
    tile = job // (groups * row_groups)
    t = job % groups * MASKS + tl.arange(0, MASKS)
    r = job // groups % row_groups * ROWS + tl.arange(0, ROWS)
    i = tile // (N // BLOCK)
    points = tile * BLOCK + tl.arange(0, BLOCK)
    h_at = hint + (tl.minimum(r, rows - 1).to(tl.int64) * (LEAVES * 2 * N))[:, None, None] + points[None, None, :]
    s_at = leaves + (tl.minimum(t, masks - 1).to(tl.int64) * (LEAVES * 2 * N))[None, :, None] + points[None, None, :]
    total = tl.zeros([ROWS, MASKS, BLOCK], dtype=tl.uint64)
    for first in tl.range(0, LEAVES, UNROLL, num_stages=STAGES):
        for k in tl.static_range(UNROLL):
            h = tl.load(h_at + (first + k) * (2 * N))
            s = tl.load(s_at + (first + k) * (2 * N))
            total += h.to(tl.uint64) * s.to(tl.uint64)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    value = reduce(times(montgomery(total, p, pn), tl.load(row + SQUARE), p, pn), p)
    at = (t.to(tl.int64)[None, :] * rows + r[:, None])[:, :, None] * (2 * N) + points[None, None, :]
    inside = (r < rows)[:, None, None] & (t < masks)[None, :, None] & (points >= 0)[None, None, :]
    tl.store(out + at, value, mask=inside)


class ProductTile(NamedTuple):
    """How one program of the Ĥ product is shaped: rows × masks sums for each of some points."""

    rows: int
    masks: int
    points: int
    unroll: int
    warps: int
    stages: int

    @classmethod
    def choose(cls, masks: int, degree: int) -> ProductTile:
        """The tile that was fastest on an H100 (docs/gpu.md)."""
        if masks == 1:
            return cls(4, 1, min(512, degree), 8, 4, 1)
        many = min(8, 1 << (masks - 1).bit_length())
        if masks <= 8:
            return cls(4 if masks > 2 else 8, many, min(128, degree), 2, 4, 3)
        return cls(8, many, min(64, degree), 4, 2, 3)


@triton.jit
def combine(  # type: ignore[no-untyped-def]
    products, digits, digit_stride, sets, keys, key_stride, epochs, out, blocks, rotations, twiddles, words, fractions,
    BITS: tl.constexpr, MOVED: tl.constexpr, FOLD: tl.constexpr, N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Products [T, blocks·G, 2, N] → [T, blocks·N] of BITS-bit words; one block of one mask a program.

    Adds the first MOVED of the G moved products: all on the b side; on the a side one, as a key switch leaves nothing.
    """
    e = tl.arange(0, N)
    t = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    products += (t * blocks + block) * (FOLD * 2 * N)
    digits += tl.load(sets + t).to(tl.int64) * digit_stride + block.to(tl.int64) * ((FOLD - 1) * 6 * N)
    keys += tl.load(epochs + t).to(tl.int64) * key_stride
    total = tl.zeros([N], dtype=tl.uint64)
    for i in range(3):
        row = words + i * COLUMNS
        p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
        value = tl.zeros([N], dtype=tl.uint32)
        for r in tl.static_range(MOVED):
            moved = tl.load(products + (2 * r + tl.minimum(i, 1)) * N + tl.load(rotations + r * N + e))
            value = reduce(value + moved, p)
        value = reduce(times(value, tl.load(row + SPECIAL), p, pn), p)  # SPECIAL is 0 modulo P
        for r in tl.static_range(FOLD - 1):
            switched = key_product(digits + r * 6 * N, keys + r * 6 * N, e, i, p, pn, N)
            value = reduce(reduce(value + switched, 2 * p), p)
        value = inverse(value, twiddles + 2 * i * N, tl.load(row + DEGREE_INVERSE), p, pn, LOG)
        value = reduce(times(value, tl.load(row + CRT_INVERSE), p, pn), p)
        total += value.to(tl.uint64) * tl.load(fractions + i)
    rounded = (total + (1 << (63 - BITS))) >> (64 - BITS)
    tl.store(out + (t * blocks + block) * N + e, rounded.to(tl.uint32))


# The a side ----------------------------------------------------------------------------------------------------------


@triton.jit
def switch_digits(  # type: ignore[no-untyped-def]
    source, source_stride, step, digits, digit_stride, order, twiddles, words,
    PART: tl.constexpr, N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Moved residues → centred digits as points of all primes; grid (set, item, digit j).

    Item c is part ``c mod PART`` (moved by the order of that number) of the residues at ``step·(c div PART)``.
    """
    e = tl.arange(0, N)
    m, c, j = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    row = words + j * COLUMNS
    q, qn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    source += m * source_stride + (c // PART) * step + (c % PART * 2 + j) * N
    moved = tl.load(source + tl.load(order + c % PART * N + e))
    moved = inverse(moved, twiddles + 2 * j * N, tl.load(row + DEGREE_INVERSE), q, qn, LOG)
    out = digits + m * digit_stride + c * (6 * N) + j * (3 * N)
    for i in range(3):
        other = words + i * COLUMNS
        p, pn = tl.load(other + PRIME), tl.load(other + NEGATIVE)
        digit = centre(moved, tl.load(other + CENTRE + j), tl.load(other + RATIO), q // 2, p)
        tl.store(out + i * N + e, forward(digit, twiddles + 2 * i * N, p, pn, LOG))


@triton.jit
def tree_step_a(  # type: ignore[no-untyped-def]
    nodes, digits, digit_stride, keys, monomials, twiddles, words, count,
    LEAVES: tl.constexpr, N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """One level of the ``a`` side in place: nodes [M, I, 2, N], their digits made; grid (set, node)."""
    e = tl.arange(0, N)
    m, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    digits += m * digit_stride + (count - 1 + c).to(tl.int64) * (6 * N)
    p, pn = tl.load(words + 2 * COLUMNS + PRIME), tl.load(words + 2 * COLUMNS + NEGATIVE)
    rest = rest_of_special(reduce(key_product(digits, keys, e, 2, p, pn, N), p), twiddles, words, N, LOG)
    for i in range(2):
        p, pn = tl.load(words + i * COLUMNS + PRIME), tl.load(words + i * COLUMNS + NEGATIVE)
        switched = reduce(key_product(digits, keys, e, i, p, pn, N), p)
        switched = quotient(switched, rest, i, twiddles, words, N, LOG)
        low_at = nodes + ((m * LEAVES + c) * 2 + i) * N + e
        low, high = children(tl.load(low_at), switched, monomials + i * N, e, p, pn)
        tl.store(low_at, low)
        tl.store(nodes + ((m * LEAVES + c + count) * 2 + i) * N + e, high)


@triton.jit
def to_montgomery(values, out, words, N: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Residues [B, 3, N] → ``v·2^32 mod p``; grid (B·3, tile)."""
    row = tl.program_id(0)
    at = row.to(tl.int64) * N + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = words + row % 3 * COLUMNS
    p, pn = tl.load(k + PRIME), tl.load(k + NEGATIVE)
    tl.store(out + at, reduce(times(tl.load(values + at), tl.load(k + SQUARE), p, pn), p))
