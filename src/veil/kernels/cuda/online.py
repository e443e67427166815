"""Triton kernels of the client's rows online: scale, encrypt, pack; unpack, decrypt, scale back. One launch each.

They need fused multiply-adds switched off, so that every step is rounded as NumPy rounds it.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.device import block_of
from veil.kernels.cuda.packing import part_of, span_of, store_units, top_bits, unpack_aligned, unpack_word
from veil.kernels.cuda.rows import Located, row_start

Tensor = torch.Tensor


@triton.jit
def _value(x, divisors, j, inside, DIVIDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Inputs divided by their divisors in float32, as float64."""
    v = tl.load(x + j, mask=inside, other=0.0)
    if DIVIDED:
        v = tl.math.div_rn(v, tl.load(divisors + j, mask=inside, other=1.0))
    return v.to(tl.float64)


@triton.jit(do_not_specialize=["offset", "stride", "target", "fixed"])
def encrypt_rows(  # type: ignore[no-untyped-def]
    x, divisors, pads, out, scales, sent, offset, stride, target, fixed, width, row_bytes,
    DIVIDED: tl.constexpr, FIXED: tl.constexpr, TABLE: tl.constexpr, KEEPS: tl.constexpr, BITS: tl.constexpr,
    SPAN: tl.constexpr, INPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows x [R, width] → packed rows and their scales; grid (row, tile of units of SPAN bits).

    `rows.Located` tells of the pads; ``target`` and ``fixed`` are the bits of float64. KEEPS: the integers that are
    encrypted go to ``sent`` [R, width].
    """
    t = tl.program_id(0).to(tl.int64)
    x += t * width
    total = tl.zeros([INPUTS], dtype=tl.float64)
    for start in range(0, width, INPUTS):
        j = start + tl.arange(0, INPUTS)
        v = _value(x, divisors, j, j < width, DIVIDED)
        total += v * v
    square = tl.sum(total, axis=0)
    wanted = tl.cast(target, tl.int64).to(tl.float64, bitcast=True)
    tau = wanted / tl.sqrt(tl.where(square == 0.0, 1.0, square))
    tau = tl.where(square == float("inf"), float("nan"), tau)
    tau = tl.where(square == 0.0, 0.0, tau)
    good = tau == tau
    shown = tau
    if FIXED:
        most = wanted / tl.cast(fixed, tl.int64).to(tl.float64, bitcast=True)
        shown = tl.where(good, most, tau)
        tau = tl.where(tau < most, tl.where(square == 0.0, most, tau), shown)
    if tl.program_id(1) == 0:
        tl.store(scales + t, shown)
    pads = row_start(pads, offset, stride, t, TABLE)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = SPAN * k // BITS
    unit = tl.zeros([BLOCK], dtype=tl.uint32)
    for part in tl.static_range((SPAN - 1) // BITS + 2):
        j = first + part
        shift = j * BITS - SPAN * k
        inside = (j < width) & (shift < SPAN)
        # 1.5·2^52 makes the sum's last bit worth one, so that it rounds to nearest even and its low word is the integer.
        v = _value(x, divisors, j, inside, DIVIDED) * tau
        message = (v + 6755399441055744.0).to(tl.uint64, bitcast=True).to(tl.uint32)
        if KEEPS:
            tl.store(sent + t * width + j, tl.where(good, message.to(tl.int32, bitcast=True), 0), mask=inside)
        word = top_bits(message + tl.load(pads + j, mask=inside, other=0), BITS)
        word = tl.where(inside, tl.where(good, word, 0), 0).to(tl.uint32)
        unit |= part_of(word, shift, SPAN)
    store_units(out + t * row_bytes, k, unit, row_bytes, SPAN)


@triton.jit(do_not_specialize=["offset", "stride"])
def decrypt_rows(  # type: ignore[no-untyped-def]
    data, shares, scales, scale, bias, out, offset, stride, count, row_bytes,
    TABLE: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Packed results less the shares that `rows.Located` tells of, scaled back; grid (row, tile).

    ``value·(1/τ)·c + bias`` in float64, as float32; where τ is 0, the bias.
    """
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    data += t * row_bytes
    shares = row_start(shares, offset, stride, t, TABLE)
    if SPAN == 8:
        word = unpack_word(data, j, inside, BITS)
    else:
        word = unpack_aligned(data.to(tl.pointer_type(tl.uint32)), j, inside, BITS)
    word = (word << (32 - BITS)) - tl.load(shares + j, mask=inside, other=0)
    value = word.to(tl.int32, bitcast=True)
    tau = tl.load(scales + t)
    inverse = tl.where(tau == 0.0, 0.0, 1.0 / tl.where(tau == 0.0, 1.0, tau))
    y = value.to(tl.float64) * inverse * tl.load(scale + j, mask=inside, other=0.0).to(tl.float64)
    y += tl.load(bias + j, mask=inside, other=0.0).to(tl.float64)
    tl.store(out + t * count + j, y.to(tl.float32), mask=inside)


# Launches ------------------------------------------------------------------------------------------------------------


def encrypt(
    x: Tensor,
    divisors: Tensor | None,
    pads: Located,
    out: Tensor,
    scales: Tensor,
    scaling: tuple[float, float],
    bits: int,
    sent: Tensor | None = None,
) -> None:
    """Launch `encrypt_rows`: x [R, width] float32 → out [R, bytes] uint8, scales [R] float64 and, if wanted, the integers
    that are encrypted in ``sent`` [R, width] int32.

    ``scaling`` is target norm and fixed norm.
    """
    rows, width = x.shape
    inputs = block_of(width, most=2048)
    span, (block, threads) = span_of(out), (256, 8) if rows < 32 else (1024, 4)
    base, offset, stride, table = pads.arguments
    encrypt_rows[(rows, max(1, -(-8 * out.shape[1] // (span * block))))](
        x, x if divisors is None else divisors, base, out, scales, x if sent is None else sent, offset, stride,
        _bits(scaling[0]), _bits(scaling[1] or 1.0), width, out.shape[1],
        divisors is not None, scaling[1] != 0.0, table, sent is not None, bits, span, inputs, block,
        num_warps=threads, enable_fp_fusion=False,
    )  # fmt: skip


def decrypt(data: Tensor, shares: Located, scales: Tensor, scale: Tensor, bias: Tensor, out: Tensor, bits: int) -> None:
    """Launch `decrypt_rows`: data [R, bytes] uint8, scales [R] float64 → out [R, rows] float32."""
    rows, count = out.shape
    block = 512
    base, offset, stride, table = shares.arguments
    decrypt_rows[(rows, -(-count // block))](
        data, base, scales, scale, bias, out, offset, stride, count, data.shape[1], table, bits, span_of(data), block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def _bits(value: float) -> int:
    """A float64 as an integer: Triton passes a scalar float as float32."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)
