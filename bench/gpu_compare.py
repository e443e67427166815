"""The Ĥ product of many masks three ways on one card: integer multiply-add (what veil runs), int8 limbs on the matrix
units, float64 on the matrix units. Called by bench/gpu.py.

Limbs: a residue below 2^28 is four 7-bit digits, so a product is 16 int8 products that fall into 7 sums of int32. This
needs the inner index to be contiguous (its own copy of Ĥ). float64: 27 × 27 bits and a sum of 256 do not fit 53 bits, so
one side is cut in two and the product runs twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from veil.kernels import cuda, cuda_ntt
from veil.kernels.cuda_ntt import COLUMNS, NEGATIVE, PRIME, SQUARE, montgomery, reduce, times


@triton.jit
def limb_points(
    hint, leaves, out, words, rows, masks, points,
    LEAVES: tl.constexpr, ROWS: tl.constexpr, MASKS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """For each of 2·points prime-points: limbs [4, rows, I] times limbs [4, T, I] → residues [rows, T]."""
    point = tl.program_id(0)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    t = tl.arange(0, MASKS)
    h_at = hint + (point.to(tl.int64) * 4 * rows + tl.minimum(r, rows - 1))[:, None] * LEAVES
    s_at = leaves + (point.to(tl.int64) * 4 * masks + tl.minimum(t, masks - 1))[None, :] * LEAVES
    c0 = tl.zeros([ROWS, MASKS], dtype=tl.int32)
    c1, c2, c3, c4, c5, c6 = c0, c0, c0, c0, c0, c0
    for first in range(0, LEAVES, DEPTH):
        i = first + tl.arange(0, DEPTH)
        s0 = tl.load(s_at + i[:, None])
        s1 = tl.load(s_at + masks * LEAVES + i[:, None])
        s2 = tl.load(s_at + 2 * masks * LEAVES + i[:, None])
        s3 = tl.load(s_at + 3 * masks * LEAVES + i[:, None])
        h = tl.load(h_at + i[None, :])
        c0 = tl.dot(h, s0, c0, out_dtype=tl.int32)
        c1 = tl.dot(h, s1, c1, out_dtype=tl.int32)
        c2 = tl.dot(h, s2, c2, out_dtype=tl.int32)
        c3 = tl.dot(h, s3, c3, out_dtype=tl.int32)
        h = tl.load(h_at + rows * LEAVES + i[None, :])
        c1 = tl.dot(h, s0, c1, out_dtype=tl.int32)
        c2 = tl.dot(h, s1, c2, out_dtype=tl.int32)
        c3 = tl.dot(h, s2, c3, out_dtype=tl.int32)
        c4 = tl.dot(h, s3, c4, out_dtype=tl.int32)
        h = tl.load(h_at + 2 * rows * LEAVES + i[None, :])
        c2 = tl.dot(h, s0, c2, out_dtype=tl.int32)
        c3 = tl.dot(h, s1, c3, out_dtype=tl.int32)
        c4 = tl.dot(h, s2, c4, out_dtype=tl.int32)
        c5 = tl.dot(h, s3, c5, out_dtype=tl.int32)
        h = tl.load(h_at + 3 * rows * LEAVES + i[None, :])
        c3 = tl.dot(h, s0, c3, out_dtype=tl.int32)
        c4 = tl.dot(h, s1, c4, out_dtype=tl.int32)
        c5 = tl.dot(h, s2, c5, out_dtype=tl.int32)
        c6 = tl.dot(h, s3, c6, out_dtype=tl.int32)
    total = c0.to(tl.uint64) + (c1.to(tl.uint64) << 7) + (c2.to(tl.uint64) << 14) + (c3.to(tl.uint64) << 21)
    total += (c4.to(tl.uint64) << 28) + (c5.to(tl.uint64) << 35) + (c6.to(tl.uint64) << 42)
    row = words + point // points * COLUMNS
    p, pn = tl.load(row + PRIME), tl.load(row + NEGATIVE)
    value = reduce(times(montgomery(total, p, pn), tl.load(row + SQUARE), p, pn), p)
    at = (point.to(tl.int64) * rows + r)[:, None] * masks + t[None, :]
    tl.store(out + at, value, mask=(r < rows)[:, None] & (t < masks)[None, :])


def limbs(residues: torch.Tensor) -> torch.Tensor:
    """[rows, I, 2, N] → 7-bit digits [2·N, 4, rows, I] int8."""
    rows, leaves, primes, degree = residues.shape
    out = torch.empty((primes * degree, 4, rows, leaves), dtype=torch.int8, device="cuda")
    for row in range(rows):
        values = residues[row].view(torch.int32).reshape(leaves, -1).T
        for digit in range(4):
            out[:, digit, row] = ((values >> (7 * digit)) & 127).to(torch.int8)
    return out


def compare(bench: Any, time_calls: Any, rows: int = 136, masks: int = 64) -> None:
    """Times of all three for GPT-2's rows and 64 masks; the limb product is checked against the kernel that veil runs."""
    hint, leaves = bench.residues(rows, bench.ring.leaves), bench.residues(masks, bench.ring.leaves)
    times = time_calls(lambda: cuda.product(hint, leaves, bench.ring), 10)
    bench.row("comparison", f"product, T = {masks}: 64-bit multiply-add", times, parts=masks, per="mask")
    compare_limbs(bench, time_calls, hint, leaves)
    compare_float64(bench, time_calls, rows, masks)


def compare_rows(bench: Any, time_graph: Any) -> None:
    """``W·b - h`` of 16 and 64 rows: matrix units (what veil runs), the kernel of one row for each, float64."""
    for rows, width in ((2304, 768), (16384, 2048)):
        weights = bench.weights(rows, width)
        wide = weights.double()
        for masks in (16, 64):
            data = bench.words(masks, width * 3 // 4).view(torch.uint8)
            h = bench.words(masks, rows)
            one = [(data[t : t + 1].contiguous(), h[t : t + 1]) for t in range(masks)]
            words = torch.randint(0, 1 << 32, (width, masks), device="cuda").double()
            together = cuda.answer(data, weights, h, 24, 18)
            alone = torch.cat([cuda.answer(d, weights, share, 24, 18) for d, share in one])
            bench.check(f"rows, {rows} x {width}, T = {masks}: one at a time", together, cuda.to_numpy(alone))
            for name, step in (
                ("int8 limbs, matrix units", lambda d=data, w=weights, s=h: cuda.answer(d, w, s, 24, 18)),
                ("32-bit multiply-add, row by row", lambda o=one, w=weights: [cuda.answer(d, w, s, 24, 18) for d, s in o]),
                ("float64 product alone (cuBLAS)", lambda a=wide, b=words: a @ b),
            ):
                label = f"rows {rows} x {width}, T = {masks}: {name}"
                bench.row("comparison", label, time_graph(step, 10), parts=masks, per="row")


def compare_limbs(bench: Any, time_calls: Any, hint: torch.Tensor, leaves: torch.Tensor) -> None:
    ring, rows, masks = bench.ring, len(hint), len(leaves)
    hint_limbs, leaf_limbs = limbs(hint), limbs(leaves)
    words = cuda_ntt.constants(ring, leaves.device).words
    out = torch.empty((2 * ring.N, rows, masks), dtype=torch.uint32, device="cuda")

    def by_limbs() -> None:
        limb_points[(2 * ring.N, -(-rows // 64))](
            hint_limbs, leaf_limbs, out, words, rows, masks, ring.N, ring.leaves, 64, 64, 64, num_warps=8
        )

    by_limbs()
    expected = cuda.to_numpy(cuda.product(hint[:3], leaves, ring)).transpose(2, 3, 1, 0)
    expected = np.ascontiguousarray(expected.reshape(2 * ring.N, 3, masks))
    bench.check("int8 limb product equals the integer product", out[:, :3], expected)
    times = time_calls(by_limbs, 10)
    bench.row("comparison", f"product, T = {masks}: int8 limbs, matrix units", times, parts=masks, per="mask")


def compare_float64(bench: Any, time_calls: Any, rows: int, masks: int) -> None:
    ring = bench.ring
    left = torch.randn((2 * ring.N, rows, ring.leaves), dtype=torch.float64, device="cuda")
    right = torch.randn((2 * ring.N, ring.leaves, masks), dtype=torch.float64, device="cuda")
    times = time_calls(lambda: (torch.bmm(left, right), torch.bmm(left, right)), 10)
    bench.row("comparison", f"product, T = {masks}: float64 twice (cuBLAS)", times, parts=masks, per="mask")
