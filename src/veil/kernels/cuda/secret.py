"""The client's secrets on a GPU: the stream cipher behind its errors, and how a batch's secret is encrypted."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch
import triton
import triton.language as tl

from veil.kernels.cuda.constants import COLUMNS, NEGATIVE, PRIME, SCALE, SQUARE, Constants
from veil.kernels.cuda.device import empty, put
from veil.kernels.cuda.ntt import forward, log2, reduce, signed_residue, times, warps
from veil.kernels.gaussian import GaussianTable
from veil.kernels.interface import Words
from veil.kernels.ring import Ring

Tensor = torch.Tensor


# The stream cipher ---------------------------------------------------------------------------------------------------


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


@triton.jit
def _sample(low, high, bounds, entries, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of ``bounds`` are at most the word of these halves: a binary search, and ``entries // 2`` less."""
    word = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
    first = (low & 0).to(tl.int32)
    last = first + entries
    for _ in tl.static_range(STEPS):
        middle = (first + last) // 2
        after = (first < last) & (tl.load(bounds + tl.minimum(middle, entries - 1)) <= word)
        first, last = tl.where(after, middle + 1, first), tl.where(after, last, tl.maximum(first, middle))
    return (first - entries // 2).to(tl.int8)


@triton.jit(do_not_specialize=["counter"])
def gaussian_blocks(key, bounds, entries, out, counter, count, STEPS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rounded Gaussian samples [count] int8 from ChaCha20's key stream (RFC 8439, a nonce of zeros) from block ``counter``.

    Eight samples a block, one for each 64-bit word of it.
    """
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], dtype=tl.uint32)
    c0, c1, c2, c3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    k0, k1, k2, k3 = (
        zero + tl.load(key), zero + tl.load(key + 1), zero + tl.load(key + 2), zero + tl.load(key + 3),
    )  # fmt: skip
    k4, k5, k6, k7 = (
        zero + tl.load(key + 4), zero + tl.load(key + 5), zero + tl.load(key + 6), zero + tl.load(key + 7),
    )  # fmt: skip
    number = b.to(tl.uint32) + tl.cast(counter, tl.uint32)
    x0, x1, x2, x3, x4, x5, x6, x7 = c0, c1, c2, c3, k0, k1, k2, k3
    x8, x9, x10, x11, x12, x13, x14, x15 = k4, k5, k6, k7, number, zero, zero, zero
    for _ in range(10):
        x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    at = b.to(tl.int64) * 8
    tl.store(out + at, _sample(x0 + c0, x1 + c1, bounds, entries, STEPS), mask=at < count)
    tl.store(out + at + 1, _sample(x2 + c2, x3 + c3, bounds, entries, STEPS), mask=at + 1 < count)
    tl.store(out + at + 2, _sample(x4 + k0, x5 + k1, bounds, entries, STEPS), mask=at + 2 < count)
    tl.store(out + at + 3, _sample(x6 + k2, x7 + k3, bounds, entries, STEPS), mask=at + 3 < count)
    tl.store(out + at + 4, _sample(x8 + k4, x9 + k5, bounds, entries, STEPS), mask=at + 4 < count)
    tl.store(out + at + 5, _sample(x10 + k6, x11 + k7, bounds, entries, STEPS), mask=at + 5 < count)
    tl.store(out + at + 6, _sample(x12 + number, x13, bounds, entries, STEPS), mask=at + 6 < count)
    tl.store(out + at + 7, _sample(x14, x15, bounds, entries, STEPS), mask=at + 7 < count)


class DeviceErrors:
    """Rounded Gaussian errors made on the device, from ChaCha20 under keys that a `Words` gives; see `interface.Errors`.

    The key is drawn anew for every gibibyte of the stream. It has no representation and cannot be pickled or copied.
    """

    _REKEY_BLOCKS = 1 << 24

    def __init__(self, source: Words, sigma: float) -> None:
        self._source = source
        self._bounds = put(GaussianTable(sigma).bounds)
        self._left = 0

    def draw(self, *shape: int) -> Tensor:
        """Samples of this shape, int8."""
        out = empty(*shape, dtype=torch.int8)
        flat, samples = out.view(-1), out.numel()
        entries, block = len(self._bounds), 128
        done = 0
        while done < samples:
            if not self._left:
                self._key = put(self._source.words64(4).view(np.uint32))
                self._next, self._left = 0, self._REKEY_BLOCKS
            blocks = min(self._left, -(-(samples - done) // 8))
            part = flat[done : done + 8 * blocks]
            gaussian_blocks[(-(-blocks // block),)](
                self._key, self._bounds, entries, part, self._next, len(part), entries.bit_length(), block
            )
            self._next, self._left = self._next + blocks, self._left - blocks
            done += 8 * blocks
        return out

    def __repr__(self) -> str:
        return "<DeviceErrors>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secret randomness cannot be pickled or copied")


# A batch's secret ----------------------------------------------------------------------------------------------------


@triton.jit
def encrypted_terms(  # type: ignore[no-untyped-def]
    a, z, secret, errors, out, twiddles, words, R: tl.constexpr, ROWS: tl.constexpr, LOG: tl.constexpr
):
    """``-a_v·z + e_v + Δ·s_v(X^w)`` of B batches as points [B, terms, 2, N]; grid (term, prime, batch).

    Public points a [terms, 2, N]; z [B, N], secret [B, k, T·r] and errors [B, terms, N] int8; R is r and ROWS T.
    """
    size: tl.constexpr = 1 << LOG
    width: tl.constexpr = size // ROWS
    e = tl.arange(0, size)
    term, i, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    terms = tl.num_programs(0)
    z += b * size
    secret += b * (terms * ROWS)
    errors += b * (terms * size)
    out += b * (terms * 2 * size)
    row = words + i * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    s = tl.load(secret + (term // R) * (R * ROWS) + e // width * R + term % R, mask=e % width == 0, other=0)
    scale = tl.load(row + SCALE)
    message = tl.where(s == 0, 0, tl.where(s > 0, scale, p - scale)).to(tl.uint32)
    value = signed_residue(tl.load(errors + term * size + e).to(tl.int32), row, p) + message
    value = forward(value, twiddles + 2 * i * size, p, pn, LOG)
    at = (term * 2 + i) * size + e
    key = forward(signed_residue(tl.load(z + e).to(tl.int32), row, p), twiddles + 2 * i * size, p, pn, LOG)
    product = times(tl.load(a + at), key, p, pn)
    product = reduce(times(product, tl.load(row + SQUARE), p, pn), p)
    tl.store(out + at, reduce(value + p - product, p))


def encrypt_terms(a: Tensor, z: Tensor, secrets: Tensor, errors: Tensor, ring: Ring, constants: Constants) -> Tensor:
    """Launch `encrypted_terms`: points a [terms, 2, N], z [B, N], secrets [B, k, m], errors [B, terms, N], all three int8 →
    [B, terms, 2, N] uint32.
    """
    out = empty(len(z), ring.terms, 2, ring.N)
    if len(z):
        sizes = (ring.r, ring.T, log2(ring.N))
        encrypted_terms[(ring.terms, 2, len(z))](
            a, z, secrets, errors, out, constants.outer, constants.words, *sizes, num_warps=warps(ring.N)
        )
    return out
