"""Triton kernels from polynomials to their points, and the sums of products at each point.

Points that stay are kept in three bytes, four in three words: words [3, N/4] hold points ``j + q·N/4``, q = 0, 1 and 2 in
their lower bytes and the bytes of q = 3 in their upper ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.constants import COLUMNS, MU, NEGATIVE, PRIME, Constants
from veil.kernels.cuda.device import empty
from veil.kernels.cuda.ntt import forward, log2, montgomery, quarters, signed_residue, warps

Tensor = torch.Tensor


@triton.jit
def _store_three_bytes(x, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    part: tl.constexpr = N // 4
    x0, x1, x2, x3 = quarters(x, 1, part)
    j = tl.arange(0, part)
    tl.store(out + j, x0 | ((x3 & 0xFF) << 24))
    tl.store(out + part + j, x1 | (((x3 >> 8) & 0xFF) << 24))
    tl.store(out + 2 * part + j, x2 | ((x3 >> 16) << 24))


@triton.jit
def signed_ntt(values, out, twiddles, words, LOG: tl.constexpr, PACKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Signed polynomials [C, K, 2^LOG], int8 or int32, → points of both outer primes; grid (C, K, prime).

    PACKED: words [C, 2, K, 3, 2^LOG/4]; otherwise [C, K, 2, 2^LOG].
    """
    size: tl.constexpr = 1 << LOG
    c, k, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    terms = tl.num_programs(1)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    e = tl.arange(0, size)
    x = signed_residue(tl.load(values + (c * terms + k) * size + e).to(tl.int32), row, p)
    x = forward(x, twiddles + 2 * i * size, p, pn, LOG)
    if PACKED:
        _store_three_bytes(x, out + ((c * 2 + i) * terms + k) * (3 * size // 4), size)
    else:
        tl.store(out + ((c * terms + k) * 2 + i) * size + e, x)


@triton.jit
def key_ntt(values, out, twiddles, words, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Signed polynomials [B, 2^LOG] → their points modulo the prime whose constants are ``words``; one a program."""
    e = tl.program_id(0) * (1 << LOG) + tl.arange(0, 1 << LOG)
    p, pn = tl.load(words + PRIME), tl.load(words + NEGATIVE)
    x = signed_residue(tl.load(values + e).to(tl.int32), words, p)
    tl.store(out + e, forward(x, twiddles, p, pn, LOG))


@triton.jit
def hint_ntt(rows, out, twiddles, words, slots, ROWS: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """H [slots, terms·T] → points of G in three bytes [blocks, 2, terms, 3, N/4]; grid (block, term, prime).

    Coefficient ``t·w + j`` of a block's term is entry ``term·T + t`` of its slot j; ROWS is T.
    """
    size: tl.constexpr = 1 << LOG
    width: tl.constexpr = size // ROWS
    c, k, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    terms = tl.num_programs(1)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    e = tl.arange(0, size)
    slot = c * width + e // ROWS
    x = tl.load(rows + slot * (terms * ROWS) + k * ROWS + e % ROWS, mask=slot < slots, other=0)
    x = tl.reshape(tl.trans(tl.reshape(signed_residue(x, row, p), [width, ROWS])), [size])
    x = forward(x, twiddles + 2 * i * size, p, pn, LOG)
    _store_three_bytes(x, out + ((c * 2 + i) * terms + k) * (3 * size // 4), size)


@triton.jit
def public_ntt(table, out, twiddles, words, slots, ROWS: tl.constexpr, BITS: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """a' [T, slots] of BITS-bit words → points modulo the prime of μ [blocks, N]; one block a program."""
    size: tl.constexpr = 1 << LOG
    width: tl.constexpr = size // ROWS
    c = tl.program_id(0).to(tl.int64)
    p, pn = tl.load(words + PRIME), tl.load(words + NEGATIVE)
    e = tl.arange(0, size)
    x = tl.load(table + (e // width).to(tl.int64) * slots + c * width + e % width)
    x = tl.where(x >= (1 << (BITS - 1)), x + p - (1 << BITS), x)
    tl.store(out + c * size + e, forward(x, twiddles, p, pn, LOG))


@triton.jit
def _plus(s0, s1, s2, s3, w0, w1, w2, w3, f, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four sums, and the products of four points with the factors at f, f + PART and so on."""
    s0 += w0.to(tl.uint64) * tl.load(f).to(tl.uint64)
    s1 += w1.to(tl.uint64) * tl.load(f + PART).to(tl.uint64)
    s2 += w2.to(tl.uint64) * tl.load(f + 2 * PART).to(tl.uint64)
    s3 += w3.to(tl.uint64) * tl.load(f + 3 * PART).to(tl.uint64)
    return s0, s1, s2, s3


@triton.jit
def _store_sums(s0, s1, s2, s3, to, inside, p, pn, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(to, montgomery(s0, p, pn), mask=inside)
    tl.store(to + PART, montgomery(s1, p, pn), mask=inside)
    tl.store(to + 2 * PART, montgomery(s2, p, pn), mask=inside)
    tl.store(to + 3 * PART, montgomery(s3, p, pn), mask=inside)


@triton.jit(do_not_specialize=["count", "some"])
def term_sums(  # type: ignore[no-untyped-def]
    points, batches, out, words, count, some,
    TERMS: tl.constexpr, N: tl.constexpr,
    ROWS: tl.constexpr, BATCHES: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``Σ_v points[c, v]·batches[b, v]·2^-32`` modulo both primes, of C polynomials and B batches → [B, C, 2, N].

    Points in three bytes [C, 2, terms, 3, N/4], batches [B, terms, 2, N]; a program makes four sums in ROWS × BLOCK for
    each of BATCHES (1, 2 or 4). All tensors have one shape, so that nothing moves between threads; warps of neighbouring
    rows share what they read of batches. Sums are below 2^63; what is stored is below ``sum/2^32 + p``.
    """
    part: tl.constexpr = N // 4
    groups = tl.cdiv(some, BATCHES)
    row_groups = tl.cdiv(count, ROWS)
    job = tl.program_id(0)
    lane = tl.arange(0, ROWS * BLOCK)
    c = job // groups % row_groups * ROWS + lane // BLOCK
    b = job % groups * BATCHES
    tile = job // (groups * row_groups)
    i = tile // (part // BLOCK)
    j = tile % (part // BLOCK) * BLOCK + lane % BLOCK
    at = points + (tl.minimum(c, count - 1).to(tl.int64) * 2 + i) * (TERMS * 3 * part) + j
    f0 = batches + (b * (TERMS * 2) + i) * N + j
    f1 = batches + (tl.minimum(b + 1, some - 1) * (TERMS * 2) + i) * N + j
    f2 = batches + (tl.minimum(b + 2, some - 1) * (TERMS * 2) + i) * N + j
    f3 = batches + (tl.minimum(b + 3, some - 1) * (TERMS * 2) + i) * N + j
    zero = tl.zeros([ROWS * BLOCK], dtype=tl.uint64)
    a0, a1, a2, a3 = zero, zero, zero, zero
    b0, b1, b2, b3 = zero, zero, zero, zero
    c0, c1, c2, c3 = zero, zero, zero, zero
    d0, d1, d2, d3 = zero, zero, zero, zero
    for first in range(0, TERMS, UNROLL):
        for k in tl.static_range(UNROLL):
            w0 = tl.load(at + (first + k) * (3 * part))
            w1 = tl.load(at + (first + k) * (3 * part) + part)
            w2 = tl.load(at + (first + k) * (3 * part) + 2 * part)
            w3 = (w0 >> 24) | ((w1 >> 16) & 0xFF00) | ((w2 >> 8) & 0xFF0000)
            w0, w1, w2 = w0 & 0xFFFFFF, w1 & 0xFFFFFF, w2 & 0xFFFFFF
            step = (first + k) * (2 * N)
            a0, a1, a2, a3 = _plus(a0, a1, a2, a3, w0, w1, w2, w3, f0 + step, part)
            if BATCHES > 1:
                b0, b1, b2, b3 = _plus(b0, b1, b2, b3, w0, w1, w2, w3, f1 + step, part)
            if BATCHES > 2:
                c0, c1, c2, c3 = _plus(c0, c1, c2, c3, w0, w1, w2, w3, f2 + step, part)
                d0, d1, d2, d3 = _plus(d0, d1, d2, d3, w0, w1, w2, w3, f3 + step, part)
    p, pn = tl.load(words + i * COLUMNS + PRIME), tl.load(words + i * COLUMNS + NEGATIVE)
    inside = c < count
    size = tl.cast(count, tl.int64) * (2 * N)
    to = out + b * size + c.to(tl.int64) * (2 * N) + i * N + j
    _store_sums(a0, a1, a2, a3, to, inside, p, pn, part)
    if BATCHES > 1:
        _store_sums(b0, b1, b2, b3, to + size, inside & (b + 1 < some), p, pn, part)
    if BATCHES > 2:
        _store_sums(c0, c1, c2, c3, to + 2 * size, inside & (b + 2 < some), p, pn, part)
        _store_sums(d0, d1, d2, d3, to + 3 * size, inside & (b + 3 < some), p, pn, part)


class SumTile(NamedTuple):
    """How a program of `term_sums` is shaped."""

    rows: int
    batches: int
    points: int
    unroll: int
    warps: int

    @classmethod
    def choose(cls, batches: int, degree: int, terms: int) -> SumTile:
        """The tile that was fastest on an H100 (docs/gpu.md)."""
        rows, many, points, unroll, threads = {1: (1, 1, 512, 4, 4), 2: (8, 2, 64, 4, 8)}.get(batches, (4, 4, 64, 2, 4))
        points = min(points, degree // 4)
        unroll = next(step for step in (unroll, 3, 2, 1) if terms % step == 0)
        return cls(rows, many, points, unroll, threads)


# Launches ------------------------------------------------------------------------------------------------------------


def small_ntt(values: Tensor, twiddles: Tensor, constants: Constants) -> Tensor:
    """Signed polynomials [C, K, degree], int8 or int32, → points [C, K, 2, degree]."""
    count, terms, degree = values.shape
    out = empty(count, terms, 2, degree)
    if count:
        signed_ntt[(count, terms, 2)](values, out, twiddles, constants.words, log2(degree), False, num_warps=warps(degree))
    return out


def mu_points(values: Tensor, constants: Constants) -> Tensor:
    """Signed polynomials [B, N], int8 or int32, → points modulo the prime of μ [B, N]."""
    count, degree = values.shape
    out = empty(count, degree)
    if count:
        key_ntt[(count,)](values, out, constants.mu, constants.words[MU], log2(degree), num_warps=warps(degree))
    return out


def packed_ntt(values: Tensor, twiddles: Tensor, constants: Constants) -> Tensor:
    """Signed polynomials [C, K, degree] int32 → points in three bytes [C, 2, K, 3, degree/4]."""
    count, terms, degree = values.shape
    out = empty(count, 2, terms, 3, degree // 4)
    if count:
        signed_ntt[(count, terms, 2)](values, out, twiddles, constants.words, log2(degree), True, num_warps=warps(degree))
    return out


def sums(points: Tensor, batches: Tensor, constants: Constants, out: Tensor, tile: SumTile | None = None) -> None:
    """Launch `term_sums`: points [C, 2, terms, 3, N/4], batches [B, terms, 2, N] → out [B, C, 2, N], all uint32."""
    count, _, terms, _, part = points.shape
    some, degree = len(batches), 4 * part
    tile = tile or SumTile.choose(some, degree, terms)
    grid = (-(-some // tile.batches) * -(-count // tile.rows) * 2 * (part // tile.points),)
    term_sums[grid](
        points, batches, out, constants.words, count, some, terms, degree,
        tile.rows, tile.batches, tile.points, tile.unroll, num_warps=tile.warps,
    )  # fmt: skip


def fill(rows: Tensor, out: Tensor, height: int, constants: Constants) -> None:
    """Launch `hint_ntt`: H [slots, terms·T] int32, T = ``height`` → out [blocks, 2, terms, 3, N/4] uint32."""
    blocks, _, terms, _, part = out.shape
    degree = 4 * part
    hint_ntt[(blocks, terms, 2)](
        rows, out, constants.outer, constants.words, len(rows), height, log2(degree), num_warps=warps(degree)
    )


def mu_ntt(table: Tensor, degree: int, bits: int, constants: Constants) -> Tensor:
    """Launch `public_ntt`: a' [T, slots], slots whole blocks → points [blocks, degree], both uint32."""
    height, slots = table.shape
    out = empty(slots * height // degree, degree)
    if len(out):
        public_ntt[(len(out),)](
            table, out, constants.mu, constants.words[MU], slots, height, bits, log2(degree), num_warps=warps(degree)
        )
    return out
