"""Triton kernels of the wrapping product ``W·x``: one row by multiply-adds, several rows on the matrix units.

One row goes from packed bytes to packed bytes in one launch. For several, a 24-bit word is three signed bytes, so ``W·x``
modulo 2^32 is three int8 products, shifted and added; the hint's ``W·A`` is four.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.device import block_of, empty
from veil.kernels.cuda.packing import part_of, span_of, store_limbs, top_bits, unpack_aligned, unpack_word
from veil.kernels.cuda.rows import Located
from veil.kernels.ring import Ring

Tensor = torch.Tensor


@triton.jit(do_not_specialize=["offset"])
def answer_one(  # type: ignore[no-untyped-def]
    data, weights, shares, out, offset, rows, width, row_bytes,
    INPUT_BITS: tl.constexpr, BITS: tl.constexpr, BYTES: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One packed row → packed ``W·b - h`` in its top BITS; a program makes ROWS (a multiple of 8) outputs.

    The row is read in units of SPAN bits.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = weights + tl.minimum(r, rows - 1).to(tl.int64)[:, None] * width
    total = tl.zeros([ROWS, BLOCK], dtype=tl.int32)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = weights_tile(at + j[None, :], (j < width)[None, :], EVEN)
        if SPAN == 8:
            word = unpack_word(data, j, j < width, INPUT_BITS)
        else:
            word = unpack_aligned(data.to(tl.pointer_type(tl.uint32)), j, j < width, INPUT_BITS)
        x = (word << (32 - INPUT_BITS)).to(tl.int32, bitcast=True)
        total += w.to(tl.int32) * x[None, :]
    value = tl.sum(total, axis=1).to(tl.uint32, bitcast=True)
    value = top_bits(value - tl.load(shares + offset + r, mask=r < rows, other=0), BITS)
    value = tl.where(r < rows, value, 0).to(tl.uint32)
    # Byte k of the tile is the sum (the parts do not overlap) of what each word puts there.
    k = tl.arange(0, BYTES)
    shift = tl.arange(0, ROWS)[:, None] * BITS - 8 * k[None, :]
    byte = tl.sum((part_of(value[:, None], shift, 8) & 0xFF).to(tl.int32), axis=0)
    tile_bytes: tl.constexpr = ROWS * BITS // 8
    at_byte = tl.program_id(0) * tile_bytes + k
    tl.store(out + at_byte, byte.to(tl.uint8), mask=(k < tile_bytes) & (at_byte < row_bytes))


@triton.jit
def limb_product(  # type: ignore[no-untyped-def]
    weights, limbs, out, rows, width, columns, shift, row_stride, column_stride,
    LIMBS: tl.constexpr, CENTRED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """``W·x·2^shift`` modulo 2^32 of weights [rows, width] int8 and x as signed bytes [LIMBS, columns, width].

    CENTRED, if not 0: ``round(product / 2^(32 - CENTRED))``, centred. Entry (r, c) is stored at ``r·row_stride +
    c·column_stride``. Programs of GROUP row tiles follow one another, so that they share what they read.
    """
    tiles = tl.cdiv(columns, COLUMNS)
    job = tl.program_id(0)
    group = job // (GROUP * tiles) * GROUP
    size = tl.minimum(tl.cdiv(rows, ROWS) - group, GROUP)
    r = (group + job % (GROUP * tiles) % size) * ROWS + tl.arange(0, ROWS)
    c = job % (GROUP * tiles) // size * COLUMNS + tl.arange(0, COLUMNS)
    w_at = weights + tl.minimum(r, rows - 1).to(tl.int64)[:, None] * width
    x_at = limbs + tl.minimum(c, columns - 1).to(tl.int64)[None, :] * width
    plane = tl.cast(columns, tl.int64) * width
    a0 = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    a1 = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    a2 = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    a3 = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = weights_tile(w_at + j[None, :], (j < width)[None, :], EVEN)
        a0 = tl.dot(w, weights_tile(x_at + j[:, None], (j < width)[:, None], EVEN), a0, out_dtype=tl.int32)
        if LIMBS > 1:
            a1 = tl.dot(w, weights_tile(x_at + plane + j[:, None], (j < width)[:, None], EVEN), a1, out_dtype=tl.int32)
        if LIMBS > 2:
            a2 = tl.dot(w, weights_tile(x_at + 2 * plane + j[:, None], (j < width)[:, None], EVEN), a2, out_dtype=tl.int32)
        if LIMBS > 3:
            a3 = tl.dot(w, weights_tile(x_at + 3 * plane + j[:, None], (j < width)[:, None], EVEN), a3, out_dtype=tl.int32)
    total = a0.to(tl.uint32, bitcast=True) + (a1.to(tl.uint32, bitcast=True) << 8)
    total += (a2.to(tl.uint32, bitcast=True) << 16) + (a3.to(tl.uint32, bitcast=True) << 24)
    total = total << tl.cast(shift, tl.uint32)
    if CENTRED > 0:  # an arithmetic shift extends the sign of the rounded top bits
        total = (total + (1 << (31 - CENTRED))).to(tl.int32, bitcast=True) >> (32 - CENTRED)
        total = total.to(tl.uint32, bitcast=True)
    at = r.to(tl.int64)[:, None] * row_stride + c.to(tl.int64)[None, :] * column_stride
    tl.store(out + at, total, mask=(r < rows)[:, None] & (c < columns)[None, :])


@triton.jit
def weights_tile(at, inside, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is at some places of weights; with EVEN all are inside."""
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0)


@triton.jit
def matrix_limbs(  # type: ignore[no-untyped-def]
    a, out, width, PARTS: tl.constexpr, R: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr
):
    """Public polynomials [C, PARTS, T·R] → `reference.inner_matrix` as signed bytes [4, n, width]; grid (row, tile)."""
    degree: tl.constexpr = T * R
    row = tl.program_id(0)
    part, t = row // T, row % T
    i, v = part // R, part % R
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = t * R + column % R - v
    inside = column < width
    at = a + (column // R * PARTS + i).to(tl.int64) * degree
    value = tl.load(at + tl.where(place < 0, place + degree, place), mask=inside, other=0)
    value = tl.where(place < 0, 0 - value, value).to(tl.uint32)
    plane = tl.num_programs(0).to(tl.int64) * width
    store_limbs(value, out + row.to(tl.int64) * width + column, plane, inside, 4)


class ProductTile(NamedTuple):
    """How a program of `limb_product` is shaped."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @classmethod
    def choose(cls, rows: int, width: int, columns: int) -> ProductTile:
        """The tile that was fastest on an H100 (docs/gpu.md)."""
        if columns > 512:
            return cls(128, 64, 128, 8, 3)
        if columns > 64 and rows >= 8192 and width <= 4096:
            return cls(128, 64, 64, 8, 4)
        if columns > 16:
            return cls(64, 64 if columns > 32 else 32, 128, 4, 3)
        return cls(64, 16, 256 if width >= 2048 else 128, 4, 3)


class RowTile(NamedTuple):
    """How a program of `answer_one` is shaped: outputs, inputs a step, warps."""

    rows: int
    depth: int
    warps: int

    @classmethod
    def choose(cls, rows: int, width: int) -> RowTile:
        """The tile that was fastest on an H100 (docs/gpu.md)."""
        if rows > 8192:
            return cls(8, 256, 1) if width <= 1024 else cls(8, 512, 2) if width <= 2048 else cls(8, 256, 2)
        return cls(8, 1024 if rows <= 4096 or width >= 2 * rows else 512, 4)


# Launches ------------------------------------------------------------------------------------------------------------


def answer_row(
    data: Tensor, weights: Tensor, shares: Located, bits: tuple[int, int], out: Tensor, tile: RowTile | None = None
) -> None:
    """Launch `answer_one`: one packed row and its shares → ``out`` [1, bytes]."""
    rows, width = weights.shape
    tile = tile or RowTile.choose(rows, width)
    depth = block_of(width, most=tile.depth)
    padded = 1 << (tile.rows * bits[1] // 8 - 1).bit_length()
    answer_one[(-(-rows // tile.rows),)](
        data, weights, shares.material, out, shares.offset, rows, width, out.shape[1], *bits, padded, span_of(data),
        tile.rows, depth, width % depth == 0, num_warps=tile.warps,
    )  # fmt: skip


def multiply(weights: Tensor, limbs: Tensor, tile: ProductTile | None = None) -> Tensor:
    """``W·x`` modulo 2^32 of rows whose words' top bytes are ``limbs`` [LIMBS, R, width] → [R, rows]."""
    out = empty(limbs.shape[1], len(weights))
    _multiply(weights, limbs, 32 - 8 * len(limbs), 0, out, (1, len(weights)), tile)
    return out


def multiply_hint(weights: Tensor, a: Tensor, ring: Ring, tile: ProductTile | None = None) -> Tensor:
    """H [slots, n] int32 of weights [slots, width] and public polynomials [elements, k, m]."""
    rows, width = weights.shape
    out = empty(rows, ring.n, dtype=torch.int32)
    if out.numel():
        limbs, block = empty(4, ring.n, width, dtype=torch.int8), 1024
        if width:
            matrix_limbs[(ring.n, -(-width // block))](a, limbs, width, ring.k, ring.r, ring.T, block)
        _multiply(weights, limbs, 0, ring.hint_bits, out.view(torch.uint32), (ring.n, 1), tile)
    return out


def _multiply(
    weights: Tensor,
    limbs: Tensor,
    shift: int,
    centred: int,
    out: Tensor,
    strides: tuple[int, int],
    tile: ProductTile | None,
) -> None:
    rows, width = weights.shape
    count, columns = limbs.shape[:2]
    if not rows or not columns:
        return
    tile = tile or ProductTile.choose(rows, width, columns)
    grid = (-(-rows // tile.rows) * -(-columns // tile.columns),)
    limb_product[grid](
        weights, limbs, out, rows, width, columns, shift, *strides, count, centred,
        tile.rows, tile.columns, tile.depth, 8, width % tile.depth == 0, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
