"""Triton kernels from sums at points to shares and pads: inverse transforms, and what is made of the coefficients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.constants import (
    COLUMNS,
    FIRST_INVERSE,
    LIFT,
    MU,
    NEGATIVE,
    PRIME,
    PRODUCT,
    SQUARE,
    SWITCH,
    Constants,
)
from veil.kernels.cuda.ntt import inverse, log2, reduce, times, warps
from veil.kernels.ring import FRACTION_BITS, Ring

Tensor = torch.Tensor


@triton.jit(do_not_specialize=["first"])
def switched(  # type: ignore[no-untyped-def]
    sums, out, twiddles, words, fractions, first, slots,
    BITS: tl.constexpr, FRACTION: tl.constexpr, ROWS: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Sums of `term_sums` [B, C, 2, N] → ``round(D·2^BITS/Q)`` in out [B, T, slots] from block ``first``; grid (C, B)."""
    size: tl.constexpr = 1 << LOG
    width: tl.constexpr = size // ROWS
    e = tl.arange(0, size)
    c, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    source = sums + (b * tl.num_programs(0) + c) * (2 * size)
    total = tl.zeros([size], dtype=tl.uint64)
    for i in range(2):
        row = words + i * COLUMNS
        p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
        x = times(tl.load(source + i * size + e), tl.load(row + SQUARE), p, pn)
        x = inverse(x, twiddles + 2 * i * size, tl.load(row + SWITCH), p, pn, LOG)
        total += x.to(tl.uint64) * tl.load(fractions + i)
    rounded = (total + (1 << (FRACTION - 1 - BITS))) >> (FRACTION - BITS)
    rounded = rounded.to(tl.uint32) & ((1 << BITS) - 1)
    to = (b * ROWS + e // width) * slots + (first + c) * width + e % width
    tl.store(out + to, rounded)


@triton.jit
def lifted(sums, errors, out, twiddles, words, ROWS: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of `term_sums` [C, 2, m] as the integers nearest zero, plus errors [T, C·r] → out [T, C·r]; one c a program."""
    size: tl.constexpr = 1 << LOG
    width: tl.constexpr = size // ROWS
    e = tl.arange(0, size)
    c = tl.program_id(0).to(tl.int64)
    x1 = tl.zeros([size], dtype=tl.uint32)
    x2 = tl.zeros([size], dtype=tl.uint32)
    for i in range(2):
        row = words + i * COLUMNS
        p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
        x1 = x2
        x2 = times(tl.load(sums + (2 * c + i) * size + e), tl.load(row + SQUARE), p, pn)
        x2 = inverse(x2, twiddles + 2 * i * size, tl.load(row + LIFT), p, pn, LOG)
    p1, row = tl.load(words + PRIME), words + COLUMNS
    p2, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    difference = x2 + p2 - reduce(x1, p2)
    factor = reduce(times(difference, tl.load(row + FIRST_INVERSE), p2, pn), p2)
    x = x1 + p1 * factor - tl.where(factor > p2 // 2, p1 * p2, 0).to(tl.uint32)
    at = (e // width).to(tl.int64) * (tl.num_programs(0) * width) + c * width + e % width
    tl.store(out + at, x + tl.load(errors + at).to(tl.int32).to(tl.uint32, bitcast=True))


@triton.jit
def mu_product(  # type: ignore[no-untyped-def]
    public, secret, out, twiddles, words, slots, BITS: tl.constexpr, ROWS: tl.constexpr, LOG: tl.constexpr
):
    """Points of a' [C, N] and z [N] → ``(a'·z mod 2^BITS)·2^(32 - BITS)`` in out [T, slots]; one block a program."""
    size: tl.constexpr = 1 << LOG
    width: tl.constexpr = size // ROWS
    e = tl.arange(0, size)
    c = tl.program_id(0).to(tl.int64)
    p, pn = tl.load(words + PRIME), tl.load(words + NEGATIVE)
    x = times(tl.load(public + c * size + e), tl.load(secret + e), p, pn)
    x = inverse(x, twiddles, tl.load(words + PRODUCT), p, pn, LOG)
    x = (x - tl.where(x > p // 2, p, 0).to(tl.uint32)) << (32 - BITS)
    slot = c * width + e % width
    tl.store(out + (e // width).to(tl.int64) * slots + slot, x, mask=slot < slots)


# Launches ------------------------------------------------------------------------------------------------------------


def switch(sums: Tensor, out: Tensor, first: int, bits: int, ring: Ring, constants: Constants) -> None:
    """Launch `switched`: sums [B, C, 2, N] → out [B, T, slots] from block ``first``, both uint32."""
    switched[(sums.shape[1], len(sums))](
        sums, out, constants.outer, constants.words, constants.fractions, first, out.shape[2],
        bits, FRACTION_BITS, ring.T, log2(ring.N), num_warps=warps(ring.N),
    )  # fmt: skip


def lift(sums: Tensor, errors: Tensor, out: Tensor, ring: Ring, constants: Constants) -> None:
    """Launch `lifted`: sums [C, 2, m] uint32, errors [T, C·r] int8 → out [T, C·r] uint32."""
    lifted[(len(sums),)](sums, errors, out, constants.inner, constants.words, ring.T, log2(ring.m), num_warps=warps(ring.m))


def multiply_mu(public: Tensor, secret: Tensor, out: Tensor, ring: Ring, constants: Constants) -> None:
    """Launch `mu_product`: points [C, N] and [N] → out [T, slots], all uint32."""
    mu_product[(len(public),)](
        public, secret, out, constants.mu, constants.words[MU], out.shape[1],
        ring.public_bits, ring.T, log2(ring.N), num_warps=warps(ring.N),
    )  # fmt: skip
