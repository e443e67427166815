"""Triton kernels of packed words: any number of bits from 1 to 32, in little-endian order, each row padded with zeros."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.device import empty
from veil.kernels.cuda.rows import Located, row_start
from veil.params import packed_bytes

Tensor = torch.Tensor

_BLOCK = 1024


@triton.jit
def unpack_word(data, j, inside, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Word j of packed bytes, read byte by byte."""
    position = j * BITS
    at = data + position // 8
    if BITS % 8 == 0:
        word = tl.load(at, mask=inside, other=0).to(tl.uint32)
        for b in tl.static_range(1, BITS // 8):
            word |= tl.load(at + b, mask=inside, other=0).to(tl.uint32) << (8 * b)
        return word
    else:
        shift = position % 8
        wide = tl.load(at, mask=inside, other=0).to(tl.uint64)
        for b in tl.static_range(1, (BITS + 14) // 8):
            needed = inside & (shift + BITS > 8 * b)
            wide |= tl.load(at + b, mask=needed, other=0).to(tl.uint64) << (8 * b)
        return ((wide >> shift.to(tl.uint64)) & ((1 << BITS) - 1)).to(tl.uint32)


@triton.jit
def unpack_aligned(data, j, inside, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """`unpack_word` by two loads, from packed words whose bytes are a multiple of four, as pointer to uint32."""
    position = j * BITS
    at = data + position // 32
    shift = (position % 32).to(tl.uint32)
    word = tl.load(at, mask=inside, other=0) >> shift
    if 32 % BITS != 0:
        above = tl.load(at + 1, mask=inside & (shift + BITS > 32), other=0)
        word |= tl.where(shift > 0, above << ((32 - shift) & 31), 0).to(tl.uint32)
    if BITS < 32:
        word &= (1 << BITS) - 1
    return word


@triton.jit
def top_bits(value, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A 32-bit word rounded to its top BITS."""
    if BITS == 32:
        return value
    else:
        return (value + (1 << (31 - BITS))) >> (32 - BITS)


@triton.jit
def part_of(word, shift, SPAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a word whose lowest bit is bit ``shift`` (it may be negative) of a unit of SPAN bits has in that unit."""
    left = tl.where((shift >= 0) & (shift < SPAN), shift, 0).to(tl.uint32)
    right = tl.where((shift < 0) & (shift > -32), -shift, 0).to(tl.uint32)
    return tl.where((shift < SPAN) & (shift > -32), (word << left) >> right, 0).to(tl.uint32)


@triton.jit
def store_units(out, place, units, count, SPAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store units of 8 or 32 bits at their places of a row, whose bytes are a multiple of a unit's."""
    if SPAN == 8:
        tl.store(out + place, (units & 0xFF).to(tl.uint8), mask=place < count)
    else:
        tl.store(out.to(tl.pointer_type(tl.uint32)) + place, units, mask=place < count // 4)


@triton.jit(do_not_specialize=["offset", "stride"])
def pack_words(  # type: ignore[no-untyped-def]
    values, shares, out, offset, stride, count, row_bytes,
    SUBTRACT: tl.constexpr, TABLE: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Words [R, count] below 2^BITS → bytes [R, row_bytes]; grid (row, tile of units of SPAN bits).

    SUBTRACT: words modulo 2^32, less the shares that `rows.Located` tells of, rounded to their top BITS.
    """
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values += t * count
    first = SPAN * k // BITS
    unit = tl.zeros([BLOCK], dtype=tl.uint32)
    if SUBTRACT:
        shares = row_start(shares, offset, stride, t, TABLE)
    for part in tl.static_range((SPAN - 1) // BITS + 2):
        j = first + part
        shift = j * BITS - SPAN * k
        inside = (j < count) & (shift < SPAN)
        value = tl.load(values + j, mask=inside, other=0)
        if SUBTRACT:
            value = top_bits(value - tl.load(shares + j, mask=inside, other=0), BITS)
        unit |= part_of(tl.where(inside, value, 0).to(tl.uint32), shift, SPAN)
    store_units(out + t * row_bytes, k, unit, row_bytes, SPAN)


@triton.jit
def unpack_words(data, out, count, row_bytes, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes [R, row_bytes] → words [R, count]; grid (row, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + t * count + j, unpack_word(data + t * row_bytes, j, j < count, BITS), mask=j < count)


@triton.jit
def store_limbs(value, at, plane, inside, LIMBS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Words below 2^(8·LIMBS) as balanced bytes: ``Σ_b byte_b·2^(8b)``, modulo 2^(8·LIMBS)."""
    balanced = (value + tl.full([1], 0x80808080, dtype=tl.uint32)) ^ tl.full([1], 0x80808080, dtype=tl.uint32)
    for b in tl.static_range(LIMBS):
        tl.store(at + b * plane, ((balanced >> (8 * b)) & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True), mask=inside)


@triton.jit
def unpack_limbs(data, out, count, row_bytes, plane, BITS: tl.constexpr, LIMBS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes [R, row_bytes] → the top LIMBS bytes of each 32-bit input, balanced, [LIMBS, R, count]; grid (row, tile)."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = unpack_word(data + t * row_bytes, j, j < count, BITS) << (8 * LIMBS - BITS)
    store_limbs(word, out + t * count + j, tl.cast(plane, tl.int64), j < count, LIMBS)


# Launches ------------------------------------------------------------------------------------------------------------


def pack(values: Tensor, bits: int) -> Tensor:
    """Words [R, count] below 2^bits → bytes [R, ⌈count·bits/8⌉]."""
    rows, count = values.shape
    out = empty(rows, packed_bytes(count, bits), dtype=torch.uint8)
    if out.numel():
        span = span_of(out)
        grid = (rows, -(-8 * out.shape[1] // (span * _BLOCK)))
        pack_words[grid](values, values, out, 0, 0, count, out.shape[1], False, False, bits, span, _BLOCK)
    return out


def span_of(rows: Tensor) -> int:
    """Bits of the units in which packed rows [R, bytes] are written and read: 32 where each row has whole ones."""
    return 32 if rows.shape[1] % 4 == 0 and rows.data_ptr() % 4 == 0 else 8


def finish(values: Tensor, shares: Located, bits: int, out: Tensor) -> None:
    """``values - shares`` modulo 2^32 [R, count], rounded to their top bits and packed into ``out`` [R, bytes]."""
    span = span_of(out)
    base, offset, stride, table = shares.arguments
    pack_words[(len(out), -(-8 * out.shape[1] // (span * _BLOCK)))](
        values, base, out, offset, stride, values.shape[1], out.shape[1], True, table, bits, span, _BLOCK
    )


def unpack(data: Tensor, count: int, bits: int) -> Tensor:
    """The inverse of `pack`: bytes [R, ⌈count·bits/8⌉] → words [R, count]."""
    out = empty(len(data), count)
    if out.numel():
        unpack_words[(len(data), -(-count // _BLOCK))](data, out, count, data.shape[1], bits, _BLOCK)
    return out


def limbs_of(data: Tensor, width: int, bits: int) -> Tensor:
    """Packed rows [R, bytes] → the bytes of their words that are not zero, lowest first and balanced, [LIMBS, R, width]."""
    rows, limbs = len(data), -(-bits // 8)
    out = empty(limbs, rows, width, dtype=torch.int8)
    if out.numel():
        grid = (rows, -(-width // _BLOCK))
        unpack_limbs[grid](data, out, width, data.shape[1], rows * width, bits, limbs, _BLOCK)
    return out
