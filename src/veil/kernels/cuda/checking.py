"""The Triton kernel of the client's check of a row's results against its secret sign vectors. One launch a group."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.online import _bits, _value
from veil.kernels.cuda.packing import unpack_word
from veil.kernels.cuda.rows import Located, row_start
from veil.kernels.interface import SignVectors

Tensor = torch.Tensor


@triton.jit(do_not_specialize=["offset", "stride", "target", "fixed"])
def residual_rows(  # type: ignore[no-untyped-def]
    data, x, divisors, shares, edges, signs, sums, inverse, out, offset, stride, target, fixed, width, slots, row_bytes,
    vectors, DIVIDED: tl.constexpr, FIXED: tl.constexpr, TABLE: tl.constexpr, BITS: tl.constexpr, INPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Packed results, rows x [R, width], signs [J, slots] and sums [chunks, J, width] → residuals; grid (row, chunk·J + j).

    `rows.Located` tells of the shares; ``target`` and ``fixed`` are the bits of float64.
    """
    t, place = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunk, vector = place // vectors, place % vectors
    x += t * width
    total = tl.zeros([INPUTS], dtype=tl.float64)
    for start in range(0, width, INPUTS):
        i = start + tl.arange(0, INPUTS)
        v = _value(x, divisors, i, i < width, DIVIDED)
        total += v * v
    square = tl.sum(total, axis=0)
    wanted = tl.cast(target, tl.int64).to(tl.float64, bitcast=True)
    tau = wanted / tl.sqrt(tl.where(square == 0.0, 1.0, square))
    tau = tl.where(square == float("inf"), float("nan"), tau)
    tau = tl.where(square == 0.0, 0.0, tau)
    good = tau == tau
    if FIXED:
        most = wanted / tl.cast(fixed, tl.int64).to(tl.float64, bitcast=True)
        tau = tl.where(tau < most, tl.where(square == 0.0, most, tau), tl.where(good, most, tau))
    expected = tl.zeros([INPUTS], dtype=tl.uint32)
    sums += place.to(tl.int64) * width
    for start in range(0, width, INPUTS):
        i = start + tl.arange(0, INPUTS)
        v = _value(x, divisors, i, i < width, DIVIDED) * tau
        message = (v + 6755399441055744.0).to(tl.uint64, bitcast=True).to(tl.uint32)
        factor = tl.load(sums + i, mask=i < width, other=0).to(tl.int32).to(tl.uint32, bitcast=True)
        expected += factor * message
    first, last = tl.load(edges + chunk), tl.load(edges + chunk + 1)
    j = first + tl.arange(0, BLOCK)
    inside = j < last
    data += t * row_bytes
    shares = row_start(shares, offset, stride, t, TABLE)
    word = unpack_word(data, j, inside, BITS)
    word = (word << (32 - BITS)) - tl.load(shares + j, mask=inside, other=0)
    sign = tl.load(signs + vector.to(tl.int64) * slots + j, mask=inside, other=0).to(tl.int32).to(tl.uint32, bitcast=True)
    got = tl.sum(sign * word, axis=0).to(tl.uint32)
    rest = (got - tl.sum(expected, axis=0).to(tl.uint32)).to(tl.int32, bitcast=True)
    residual = tl.where(good, rest.to(tl.float64) * tl.load(inverse + place), 0.0)
    tl.store(out + t * tl.num_programs(1) + place, residual)


def residuals(
    data: Tensor,
    x: Tensor,
    divisors: Tensor | None,
    shares: Located,
    vectors: SignVectors,
    out: Tensor,
    scaling: tuple[float, float],
    bits: int,
    chunk: int,
) -> None:
    """Launch `residual_rows`: data [R, bytes] uint8, x [R, width] float32 → out [R, chunks·J] float64.

    ``scaling`` is target norm and fixed norm, ``chunk`` the most slots of one.
    """
    rows, width = x.shape
    inputs = min(2048, max(32, 1 << max(width - 1, 0).bit_length()))
    block = max(32, 1 << max(chunk - 1, 0).bit_length())
    base, offset, stride, table = shares.arguments
    residual_rows[(rows, vectors.count)](
        data, x, x if divisors is None else divisors, base, vectors.edges, vectors.signs, vectors.sums, vectors.inverse, out,
        offset, stride, _bits(scaling[0]), _bits(scaling[1] or 1.0), width, vectors.signs.shape[1], data.shape[1],
        vectors.signs.shape[0], divisors is not None, scaling[1] != 0.0, table, bits, inputs, block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
