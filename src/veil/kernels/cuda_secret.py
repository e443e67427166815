"""Triton kernels of the client's secrets: the stream cipher behind its errors, an epoch's keys, encrypted masks.

All keys or all masks of an epoch take one launch. Everything equals `veil.random` and `veil.crypto.secret` exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda_hint import signed_residue
from veil.kernels.cuda_ntt import COLUMNS, NEGATIVE, PRIME, SPECIAL, SQUARE, constants, forward, reduce, times, warps
from veil.kernels.ring import Ring

Tensor = torch.Tensor


@triton.jit
def _rotated(x, LEFT: tl.constexpr):  # type: ignore[no-untyped-def]
    return (x << LEFT) | (x >> (32 - LEFT))


@triton.jit
def _quarter_round(a, b, c, d):  # type: ignore[no-untyped-def]
    a += b
    d = _rotated(d ^ a, 16)
    c += d
    b = _rotated(b ^ c, 12)
    a += b
    d = _rotated(d ^ a, 8)
    c += d
    b = _rotated(b ^ c, 7)
    return a, b, c, d


@triton.jit(do_not_specialize=["first"])
def chacha20(key, out, first, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The key stream of RFC 8439 with a nonce of zeros, from block ``first``: key [8] → words [blocks, 16]."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], dtype=tl.uint32)
    c0, c1, c2, c3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    k0, k1, k2, k3 = (
        zero + tl.load(key), zero + tl.load(key + 1), zero + tl.load(key + 2), zero + tl.load(key + 3),
    )  # fmt: skip
    k4, k5, k6, k7 = (
        zero + tl.load(key + 4), zero + tl.load(key + 5), zero + tl.load(key + 6), zero + tl.load(key + 7),
    )  # fmt: skip
    counter = b.to(tl.uint32) + tl.cast(first, tl.uint32)
    x0, x1, x2, x3, x4, x5, x6, x7 = c0, c1, c2, c3, k0, k1, k2, k3
    x8, x9, x10, x11, x12, x13, x14, x15 = k4, k5, k6, k7, counter, zero, zero, zero
    for _ in range(10):
        x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    at = out + b.to(tl.int64) * 16
    inside = b < blocks
    tl.store(at, x0 + c0, mask=inside)
    tl.store(at + 1, x1 + c1, mask=inside)
    tl.store(at + 2, x2 + c2, mask=inside)
    tl.store(at + 3, x3 + c3, mask=inside)
    tl.store(at + 4, x4 + k0, mask=inside)
    tl.store(at + 5, x5 + k1, mask=inside)
    tl.store(at + 6, x6 + k2, mask=inside)
    tl.store(at + 7, x7 + k3, mask=inside)
    tl.store(at + 8, x8 + k4, mask=inside)
    tl.store(at + 9, x9 + k5, mask=inside)
    tl.store(at + 10, x10 + k6, mask=inside)
    tl.store(at + 11, x11 + k7, mask=inside)
    tl.store(at + 12, x12 + counter, mask=inside)
    tl.store(at + 13, x13, mask=inside)
    tl.store(at + 14, x14, mask=inside)
    tl.store(at + 15, x15, mask=inside)


@triton.jit
def _public_times_secret(a, z, row, e, p, pn):  # type: ignore[no-untyped-def]
    """``a·z`` modulo p, below p; neither is in Montgomery form."""
    product = times(tl.load(a + e), tl.load(z + e), p, pn)
    return reduce(times(product, tl.load(row + SQUARE), p, pn), p)


@triton.jit
def key_half(a, z, errors, orders, out, twiddles, words, N: tl.constexpr, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """``-a·z + e`` and, modulo digit j's own prime, ``+ P·τ(z)``; grid (key·2 + digit, prime)."""
    e = tl.arange(0, N)
    item, i = tl.program_id(0), tl.program_id(1)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    value = forward(signed_residue(tl.load(errors + item * N + e), row, p), twiddles + 2 * i * N, p, pn, LOG)
    at = (item * 3 + i) * N
    value = reduce(value - _public_times_secret(a + at, z + i * N, row, e, p, pn) + p, p)
    moved = tl.load(z + i * N + tl.load(orders + item // 2 * N + e))
    moved = reduce(times(moved, tl.load(row + SPECIAL), p, pn), p)  # SPECIAL is P in Montgomery form
    value = tl.where(i == item % 2, reduce(value + moved, p), value)
    tl.store(out + at + e, value)


@triton.jit
def mask_half(  # type: ignore[no-untyped-def]
    a, sets, z, secrets, errors, scales, out, twiddles, words,
    INNER: tl.constexpr, FOLD: tl.constexpr, N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """``-a·z + e + scale·s``, s placed for partial expansion; grid (mask, prime)."""
    e = tl.arange(0, N)
    t, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    place, part = e % (N // FOLD), e // (N // FOLD)
    s = tl.load(secrets + t * INNER + place * FOLD + part, mask=place < INNER // FOLD, other=0)
    scale = tl.load(scales + i)
    message = tl.where(s == 0, 0, tl.where(s > 0, scale, p - scale)).to(tl.uint32)
    value = signed_residue(tl.load(errors + t * N + e), row, p) + message
    value = forward(value, twiddles + 2 * i * N, p, pn, LOG)
    a_at = (tl.load(sets + t).to(tl.int64) * 2 + i) * N
    value = reduce(value - _public_times_secret(a + a_at, z + i * N, row, e, p, pn) + p, p)
    tl.store(out + (2 * t + i) * N + e, value)


# Launches --------------------------------------------------------------------------------------------------------------


def key_stream(key: Tensor, first: int, blocks: int) -> Tensor:
    """ChaCha20's 64-byte blocks ``first`` to ``first + blocks`` under a key [8] of words, as words [blocks·16]."""
    out = torch.empty(blocks * 16, dtype=torch.uint32, device=key.device)
    block = 128
    if blocks:
        chacha20[(-(-blocks // block),)](key, out, first, blocks, block)
    return out


def key_halves(a: Tensor, z: Tensor, errors: Tensor, ring: Ring) -> Tensor:
    """Galois keys: a [keys, 2, 3, N], points z [3, N], errors int32 [keys, 2, N] → ``b`` halves [keys, 2, 3, N]."""
    k = constants(ring, a.device)
    orders = torch.cat([k.automorphisms, k.rotations[1:]])
    out = torch.empty_like(a)
    grid = (2 * len(a), 3)
    key_half[grid](a, z, errors, orders, out, k.twiddles, k.words, ring.N, ring.N.bit_length() - 1, num_warps=warps(ring.N))
    return out


def mask_halves(a: Tensor, sets: Tensor, z: Tensor, secrets: Tensor, errors: Tensor, scales: Tensor, ring: Ring) -> Tensor:
    """Encrypted masks: public halves a [M, 2, N], sets int32 [T], secrets int8 [T, n], errors int32 [T, N] → [T, 2, N]."""
    k = constants(ring, a.device)
    out = torch.empty((len(sets), 2, ring.N), dtype=torch.uint32, device=a.device)
    if len(sets):
        mask_half[(len(sets), 2)](
            a, sets, z, secrets, errors, scales, out, k.twiddles, k.words, ring.n, ring.fold, ring.N,
            ring.N.bit_length() - 1, num_warps=warps(ring.N),
        )  # fmt: skip
    return out
