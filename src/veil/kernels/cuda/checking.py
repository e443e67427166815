"""The Triton kernels of the client's check of results against its secret sign vectors: rows of a group in one launch, and
one row through all groups in one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.device import block_of
from veil.kernels.cuda.packing import unpack_word
from veil.kernels.cuda.rows import Located, row_start
from veil.kernels.interface import SignVectors

Tensor = torch.Tensor

EDGES, SIGNS, SUMS, INVERSE, WIDTH, SLOTS, VECTORS, BITS, FIRST, KNOWN = range(10)
"""What `residuals_of_row` knows of a group: where its sign vectors are, its inputs, its slots, J, the bits of a result, and
its first residual; and how many words that are."""

DATA, SENT, SHARES, SCALE, GIVEN = range(5)
"""What it is given of the row in each group, as addresses: packed results (0: nothing came), the integers that were sent,
shares and scale; and how many words that are."""

_INPUTS = 1024


@triton.jit
def _expected(sums, sent, width, INPUTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``γ·x_q`` modulo 2^32: sums int16 and integers int32, both [width]."""
    total = tl.zeros([INPUTS], dtype=tl.uint32)
    for start in range(0, width, INPUTS):
        i = start + tl.arange(0, INPUTS)
        factor = tl.load(sums + i, mask=i < width, other=0).to(tl.int32).to(tl.uint32, bitcast=True)
        total += factor * tl.load(sent + i, mask=i < width, other=0).to(tl.uint32, bitcast=True)
    return tl.sum(total, axis=0).to(tl.uint32)


@triton.jit
def _difference(word, bits, shares, signs, j, inside, expected):  # type: ignore[no-untyped-def]
    """``Σ_j ρ_j·y_j`` less what was expected, centred, for packed words j of so many bits."""
    word = (word << (32 - bits)) - tl.load(shares + j, mask=inside, other=0)
    sign = tl.load(signs + j, mask=inside, other=0).to(tl.int32).to(tl.uint32, bitcast=True)
    got = tl.sum(sign * word, axis=0).to(tl.uint32)
    return (got - expected).to(tl.int32, bitcast=True).to(tl.float64)


@triton.jit(do_not_specialize=["offset", "stride"])
def residual_rows(  # type: ignore[no-untyped-def]
    data, sent, scales, shares, edges, signs, sums, inverse, out, offset, stride, width, slots, row_bytes, vectors,
    TABLE: tl.constexpr, BITS: tl.constexpr, INPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Packed results, integers sent [R, width], signs [J, slots] and sums [chunks, J, width] → residuals; grid (row,
    chunk·J + j). `rows.Located` tells of the shares.
    """
    t, place = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunk, vector = place // vectors, place % vectors
    expected = _expected(sums + place.to(tl.int64) * width, sent + t * width, width, INPUTS)
    first, last = tl.load(edges + chunk), tl.load(edges + chunk + 1)
    j = first + tl.arange(0, BLOCK)
    inside = j < last
    word = unpack_word(data + t * row_bytes, j, inside, BITS)
    shares = row_start(shares, offset, stride, t, TABLE)
    rest = _difference(word, BITS, shares, signs + vector.to(tl.int64) * slots, j, inside, expected)
    scale = tl.load(scales + t)
    tl.store(out + t * tl.num_programs(1) + place, tl.where(scale == scale, rest * tl.load(inverse + place), 0.0))


@triton.jit
def _word(data, j, inside, bits):  # type: ignore[no-untyped-def]
    """Word j of packed bytes, of any number of bits."""
    position = j * bits
    at, shift = data + position // 8, position % 8
    wide = tl.zeros_like(j).to(tl.uint64)
    for b in tl.static_range(5):
        wide |= tl.load(at + b, mask=inside & (shift + bits > 8 * b), other=0).to(tl.uint64) << (8 * b)
    wide = wide >> shift.to(tl.uint64)
    return (wide & ((tl.full([], 1, tl.uint64) << bits.to(tl.uint64)) - 1)).to(tl.uint32)


@triton.jit
def residuals_of_row(  # type: ignore[no-untyped-def]
    groups, known, given, out, KNOWN: tl.constexpr, GIVEN: tl.constexpr, INPUTS: tl.constexpr, BLOCK: tl.constexpr
):
    """One row's residuals in all groups; a program makes one, whose group is in ``groups``.

    ``known`` and ``given`` have the words of a group that are named above; nothing is made where nothing came.
    """
    job = tl.program_id(0)
    group = tl.load(groups + job).to(tl.int64)
    known += KNOWN * group
    given += GIVEN * group
    data = tl.load(given)
    if data != 0:
        edges = tl.load(known).to(tl.pointer_type(tl.int32))
        signs = tl.load(known + 1).to(tl.pointer_type(tl.int8))
        sums = tl.load(known + 2).to(tl.pointer_type(tl.int16))
        inverse = tl.load(known + 3).to(tl.pointer_type(tl.float64))
        width, slots = tl.load(known + 4).to(tl.int32), tl.load(known + 5)
        vectors, bits = tl.load(known + 6).to(tl.int32), tl.load(known + 7).to(tl.int32)
        place = job - tl.load(known + 8).to(tl.int32)
        sent = tl.load(given + 1).to(tl.pointer_type(tl.int32))
        shares = tl.load(given + 2).to(tl.pointer_type(tl.uint32))
        scale = tl.load(tl.load(given + 3).to(tl.pointer_type(tl.float64)))
        chunk, vector = place // vectors, place % vectors
        expected = _expected(sums + place.to(tl.int64) * width, sent, width, INPUTS)
        first, last = tl.load(edges + chunk), tl.load(edges + chunk + 1)
        j = first + tl.arange(0, BLOCK)
        inside = j < last
        word = _word(data.to(tl.pointer_type(tl.uint8)), j, inside, bits)
        rest = _difference(word, bits.to(tl.uint32), shares, signs + vector * slots, j, inside, expected)
        tl.store(out + job, tl.where(scale == scale, rest * tl.load(inverse + place), 0.0))


# Launches ------------------------------------------------------------------------------------------------------------


def residuals(
    data: Tensor, sent: Tensor, scales: Tensor, shares: Located, vectors: SignVectors, out: Tensor, bits: int
) -> None:
    """Launch `residual_rows`: data [R, bytes] uint8, sent [R, width] int32, scales [R] float64 → out [R, count]."""
    rows, width = sent.shape
    inputs = block_of(width, most=2048)
    base, offset, stride, table = shares.arguments
    residual_rows[(rows, vectors.count)](
        data, sent, scales, base, vectors.edges, vectors.signs, vectors.sums, vectors.inverse, out, offset, stride, width,
        vectors.signs.shape[1], data.shape[1], vectors.signs.shape[0], table, bits, inputs, block_of(vectors.longest),
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def row_residuals(groups: Tensor, known: Tensor, given: Tensor, out: Tensor, block: int) -> None:
    """Launch `residuals_of_row`: groups [n] int32, known [groups, KNOWN] and given [groups, GIVEN] int64 → out [1, n]
    float64; chunks have ``block`` slots at most.
    """
    residuals_of_row[(len(groups),)](
        groups, known, given, out, KNOWN, GIVEN, _INPUTS, block, num_warps=4, enable_fp_fusion=False
    )
