"""Triton kernels of the online path: bit packing, the wrapping matrix product, encryption and decryption of rows.

One row goes from packed bytes to packed bytes in one launch. Several rows use the matrix units: a 24-bit word is three
signed bytes, so ``W·x`` modulo 2^32 is three int8 products, shifted and added.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda_hint import store_limbs


@triton.jit
def unpack_word(data, j, inside, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Word j of little-endian packed bytes, read byte by byte."""
    position = j * BITS
    at = data + position // 8
    count: tl.constexpr = BITS // 8 if BITS % 8 == 0 else (BITS + 14) // 8
    if BITS % 8 == 0:
        word = tl.load(at, mask=inside, other=0).to(tl.uint32)
        for b in tl.static_range(1, count):
            word |= tl.load(at + b, mask=inside, other=0).to(tl.uint32) << (8 * b)
        return word
    else:
        shift = position % 8
        wide = tl.load(at, mask=inside, other=0).to(tl.uint64)
        for b in tl.static_range(1, count):
            needed = inside & (shift + BITS > 8 * b)
            wide |= tl.load(at + b, mask=needed, other=0).to(tl.uint64) << (8 * b)
        return ((wide >> shift.to(tl.uint64)) & ((1 << BITS) - 1)).to(tl.uint32)


@triton.jit
def unpack(data, out, count, row_bytes, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes [T, row_bytes] → words [T, count]; grid (T, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + t * count + j, unpack_word(data + t * row_bytes, j, j < count, BITS), mask=j < count)


@triton.jit
def unpack_limbs(data, out, count, row_bytes, plane, BITS: tl.constexpr, LIMBS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes [T, row_bytes] → the top LIMBS bytes of each 32-bit input, balanced, [LIMBS, T, count]; grid (T, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = unpack_word(data + t * row_bytes, j, j < count, BITS) << (8 * LIMBS - BITS)
    store_limbs(word, out + t * count + j, plane, j < count, LIMBS)


@triton.jit
def word_limbs(words, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Words [count] → four balanced bytes each [4, count]."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    store_limbs(tl.load(words + j, mask=j < count, other=0), out + j, count, j < count, 4)


@triton.jit
def pack(values, out, count, row_bytes, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Words [T, count] below 2^BITS, BITS ≥ 8, → bytes [T, row_bytes]; a byte holds parts of at most two words."""
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j = 8 * k // BITS
    offset = (8 * k - j * BITS).to(tl.uint32)
    values += t * count
    low = tl.load(values + j, mask=j < count, other=0)
    high = tl.load(values + j + 1, mask=(j + 1 < count) & (offset + 8 > BITS), other=0)
    above = tl.where(offset + 8 > BITS, BITS - offset, 0).to(tl.uint32)
    byte = (low >> offset) | tl.where(offset + 8 > BITS, high << above, 0).to(tl.uint32)
    tl.store(out + t * row_bytes + k, (byte & 0xFF).to(tl.uint8), mask=k < row_bytes)


@triton.jit
def top_bits(value, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A 32-bit word rounded to its top BITS."""
    if BITS == 32:
        return value
    else:
        return (value + (1 << (31 - BITS))) >> (32 - BITS)


@triton.jit
def answer_one(  # type: ignore[no-untyped-def]
    data, weights, h, out, rows, width, row_bytes,
    INPUT_BITS: tl.constexpr, BITS: tl.constexpr, BYTES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One packed row → packed ``W·b - h`` in its top BITS; a program makes ROWS (a multiple of 8) outputs."""
    first = tl.program_id(0) * ROWS
    r = first + tl.arange(0, ROWS)
    at = weights + tl.minimum(r, rows - 1).to(tl.int64)[:, None] * width
    total = tl.zeros([ROWS, BLOCK], dtype=tl.int32)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        if EVEN:  # noqa: SIM108
            w = tl.load(at + j[None, :])
        else:
            w = tl.load(at + j[None, :], mask=(j < width)[None, :], other=0)
        x = (unpack_word(data, j, j < width, INPUT_BITS) << (32 - INPUT_BITS)).to(tl.int32, bitcast=True)
        total += w.to(tl.int32) * x[None, :]
    value = tl.sum(total, axis=1).to(tl.uint32, bitcast=True)
    value = top_bits(value - tl.load(h + r, mask=r < rows, other=0), BITS)
    value = tl.where(r < rows, value, 0)
    # Byte k of the tile is the sum (the parts do not overlap) of what each word puts there.
    k = tl.arange(0, BYTES)
    shift = tl.arange(0, ROWS)[:, None] * BITS - 8 * k[None, :]
    left = tl.where((shift >= 0) & (shift < 8), shift, 0).to(tl.uint32)
    right = tl.where((shift < 0) & (shift > -BITS), -shift, 0).to(tl.uint32)
    part = (value[:, None] << left) >> right
    part = tl.where((shift < 8) & (shift > -BITS), part & 0xFF, 0)
    byte = tl.sum(part.to(tl.int32), axis=0)
    tile_bytes: tl.constexpr = ROWS * BITS // 8
    at_byte = tl.program_id(0) * tile_bytes + k
    tl.store(out + at_byte, byte.to(tl.uint8), mask=(k < tile_bytes) & (at_byte < row_bytes))


@triton.jit
def limb_product(  # type: ignore[no-untyped-def]
    weights, limbs, h, out, rows, width, masks, shift,
    LIMBS: tl.constexpr, SUBTRACT: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, MASKS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """``W·x·2^shift`` modulo 2^32 (with SUBTRACT: minus h, in its top BITS) on the matrix units.

    Weights [rows, width] int8, x as signed bytes [LIMBS, T, width], h [T, rows]; grid (row tile, mask tile).
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * MASKS + tl.arange(0, MASKS)
    w_at = weights + tl.minimum(r, rows - 1).to(tl.int64)[:, None] * width
    x_at = limbs + tl.minimum(t, masks - 1).to(tl.int64)[None, :] * width
    plane = tl.cast(masks, tl.int64) * width
    a0 = tl.zeros([ROWS, MASKS], dtype=tl.int32)
    a1 = tl.zeros([ROWS, MASKS], dtype=tl.int32)
    a2 = tl.zeros([ROWS, MASKS], dtype=tl.int32)
    a3 = tl.zeros([ROWS, MASKS], dtype=tl.int32)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = _tile(w_at + j[None, :], (j < width)[None, :], EVEN)
        a0 = tl.dot(w, _tile(x_at + j[:, None], (j < width)[:, None], EVEN), a0, out_dtype=tl.int32)
        if LIMBS > 1:
            a1 = tl.dot(w, _tile(x_at + plane + j[:, None], (j < width)[:, None], EVEN), a1, out_dtype=tl.int32)
        if LIMBS > 2:
            a2 = tl.dot(w, _tile(x_at + 2 * plane + j[:, None], (j < width)[:, None], EVEN), a2, out_dtype=tl.int32)
        if LIMBS > 3:
            a3 = tl.dot(w, _tile(x_at + 3 * plane + j[:, None], (j < width)[:, None], EVEN), a3, out_dtype=tl.int32)
    total = a0.to(tl.uint32, bitcast=True) + (a1.to(tl.uint32, bitcast=True) << 8)
    total += (a2.to(tl.uint32, bitcast=True) << 16) + (a3.to(tl.uint32, bitcast=True) << 24)
    total = total << tl.cast(shift, tl.uint32)
    inside = (r < rows)[:, None] & (t < masks)[None, :]
    if SUBTRACT:
        share = tl.load(h + t[None, :].to(tl.int64) * rows + r[:, None], mask=inside, other=0)
        total = top_bits(total - share, BITS)
    at = t[None, :].to(tl.int64) * rows + r[:, None]
    tl.store(out + at, total, mask=inside)


@triton.jit
def _tile(at, inside, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0)


def row_block(rows: int, width: int) -> tuple[int, int]:
    """Inputs a step and warps of `answer_one`, as fastest on an H100 (docs/gpu.md)."""
    if rows > 8192 or (width <= 1024 and rows > 1056):
        return 256, 1
    return (1024, 4) if width >= 2 * rows or rows <= 1056 else (512, 4)


def multiply_limbs(
    weights: torch.Tensor, limbs: torch.Tensor, h: torch.Tensor | None, shift: int, bits: int
) -> torch.Tensor:
    """Launch `limb_product`: weights [rows, width], limbs [LIMBS, T, width], h [T, rows] or None → words [T, rows]."""
    rows, width = weights.shape
    count, masks = limbs.shape[:2]
    out = torch.empty((masks, rows), dtype=torch.uint32, device=weights.device)
    tall = rows * masks >= 1 << 19
    mask_tile = 64 if tall and masks > 32 else 32 if tall and masks > 16 else 16
    row_tile, depth = 64, 256 if not tall and width >= 2048 else 128
    grid = (-(-rows // row_tile), -(-masks // mask_tile))
    limb_product[grid](
        weights, limbs, out if h is None else h, out, rows, width, masks, shift,
        count, h is not None, bits, row_tile, mask_tile, depth, width % depth == 0, num_warps=4,
    )  # fmt: skip
    return out


# Client ----------------------------------------------------------------------------------------------------------------


@triton.jit
def scale_of(x, width, target, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """τ of one row: ``target / ‖x‖₂``, 0 for a row of zeros, NaN for one that is not finite."""
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        v = tl.load(x + j, mask=j < width, other=0.0).to(tl.float64)
        total += v * v
    square = tl.sum(total, axis=0)
    tau = target / tl.sqrt(tl.where(square == 0.0, 1.0, square))
    tau = tl.where(square == float("inf"), float("nan"), tau)
    return tl.where(square == 0.0, 0.0, tau)


@triton.jit
def scales(x, out, width, target, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """τ of each row; one row a program."""
    t = tl.program_id(0).to(tl.int64)
    tl.store(out + t, scale_of(x + t * width, width, tl.load(target), BLOCK))


@triton.jit
def masked_word(x, tau, masks, j, inside, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``round(τ·x) + mask`` modulo 2^32, rounded to its top BITS. Needs fused multiply-adds switched off."""
    v = tl.load(x + j, mask=inside, other=0.0).to(tl.float64) * tau
    # 1.5·2^52 makes the sum's last bit worth one, so that it rounds to nearest even and its low word is the integer.
    message = (v + 6755399441055744.0).to(tl.uint64, bitcast=True).to(tl.uint32)
    return top_bits(message + tl.load(masks + j, mask=inside, other=0), BITS)


@triton.jit
def encrypt_words(x, tau, masks, out, width, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """x and masks [T, d], τ [T] → words [T, d]; grid (T, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = masked_word(x + t * width, tl.load(tau + t), masks + t * width, j, j < width, BITS)
    tl.store(out + t * width + j, word, mask=j < width)


@triton.jit
def decrypt(data, mu, out, count, row_bytes, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Packed results and μ [T, count] → centred integers [T, count]; grid (T, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = unpack_word(data + t * row_bytes, j, j < count, BITS) << (32 - BITS)
    value = word - tl.load(mu + t * count + j, mask=j < count, other=0)
    tl.store(out + t * count + j, value.to(tl.int32, bitcast=True), mask=j < count)


@triton.jit
def gaussian(words, cumulative, entries, out, count, STEPS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rounded Gaussian samples by inversion: how many entries of ``cumulative`` are at most the word's top 63 bits."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + at, mask=at < count, other=0)
    u = word >> 1
    low = tl.zeros([BLOCK], dtype=tl.int32)
    high = low + entries
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        after = (low < high) & (tl.load(cumulative + tl.minimum(middle, entries - 1)) <= u)
        low, high = tl.where(after, middle + 1, low), tl.where(after, high, tl.maximum(low, middle))
    tl.store(out + at, tl.where((word & 1) != 0, -low, low), mask=at < count)


@triton.jit
def dequantize(values, tau, scale, bias, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``value·(1/τ)·c + bias`` of integers [T, count] in float64, as float32; where τ is 0, the bias; grid (T, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + t * count + j, mask=j < count, other=0)
    tl.store(out + t * count + j, real(value, tl.load(tau + t), scale, bias, j, j < count), mask=j < count)


@triton.jit
def real(value, tau, scale, bias, j, inside):  # type: ignore[no-untyped-def]
    """``value·(1/τ)·c + bias`` in float64, as float32; where τ is 0, the bias. Needs fused multiply-adds switched off."""
    inverse = tl.where(tau == 0.0, 0.0, 1.0 / tl.where(tau == 0.0, 1.0, tau))
    v = value.to(tl.float64) * inverse * tl.load(scale + j, mask=inside, other=0.0).to(tl.float64)
    return (v + tl.load(bias + j, mask=inside, other=0.0).to(tl.float64)).to(tl.float32)


@triton.jit
def decrypt_scaled(  # type: ignore[no-untyped-def]
    data, mu, mu_stride, tau, scale, bias, out, count, row_bytes, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """`decrypt` and `dequantize` in one launch; grid (T, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = unpack_word(data + t * row_bytes, j, j < count, BITS) << (32 - BITS)
    value = (word - tl.load(mu + t * mu_stride + j, mask=j < count, other=0)).to(tl.int32, bitcast=True)
    tl.store(out + t * count + j, real(value, tl.load(tau + t), scale, bias, j, j < count), mask=j < count)


@triton.jit
def encrypt_scaled(x, target, masks, out, tau, width, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """`scales` and `encrypt` in one launch, for BITS of whole bytes; one row a program."""
    t = tl.program_id(0).to(tl.int64)
    own = scale_of(x + t * width, width, tl.load(target), BLOCK)
    tl.store(tau + t, own)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        word = masked_word(x + t * width, own, masks + t * width, j, j < width, BITS)
        at = out + (t * width + j) * (BITS // 8)
        for b in tl.static_range(BITS // 8):
            tl.store(at + b, ((word >> (8 * b)) & 0xFF).to(tl.uint8), mask=j < width)
