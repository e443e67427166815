"""The likely tokens' logits of a tied head on a GPU, exactly, in two launches; see `veil.checks.candidates`.

Each program of the first finds the largest outputs of its part of the slots; each of the second finds the largest of these,
and computes one of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from veil.kernels.cuda.device import block_of

Tensor = torch.Tensor

PART = 1024
_WIDTH = 1024
MOST_SLOTS = 1 << 20
"""Outputs at most: so many parts' largest fit one program."""


@triton.jit
def largest_of_parts(outputs, keys, slots, LIKELY: tl.constexpr, PART: tl.constexpr):  # type: ignore[no-untyped-def]
    """Outputs [R, slots] → keys [R, parts, LIKELY] int64 of the largest of each part; grid (R, parts).

    A key orders as its output does and, among equals, as places do from the last to the first, whose low word it is.
    """
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = part * PART + tl.arange(0, PART)
    value = tl.load(outputs + r * slots + slot, mask=slot < slots, other=float("-inf"))
    word = value.to(tl.int32, bitcast=True)
    order = tl.where(word < 0, word ^ 0x7FFFFFFF, word).to(tl.int64)
    key = (order << 32) | (0x7FFFFFFF - slot).to(tl.int64)
    key = tl.where(slot < slots, key, -9223372036854775807)
    best = tl.topk(key, LIKELY)
    tl.store(keys + (r * tl.num_programs(1) + part) * LIKELY + tl.arange(0, LIKELY), best)


@triton.jit
def refine_largest(  # type: ignore[no-untyped-def]
    keys, x, table, outputs, slots, width, found,
    LIKELY: tl.constexpr, FOUND: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Replace an output of the largest by x [R, width] times its row of table [slots, width]; grid (R, LIKELY)."""
    r, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, FOUND)
    best = tl.topk(tl.load(keys + r * found + k, mask=k < found, other=-9223372036854775807), LIKELY)
    key = tl.sum(tl.where(tl.arange(0, LIKELY) == which, best, 0), axis=0)
    slot = 0x7FFFFFFF - (key & 0x7FFFFFFF)
    total = tl.zeros([WIDTH], dtype=tl.float32)
    for start in range(0, width, WIDTH):
        i = start + tl.arange(0, WIDTH)
        weight = tl.load(table + slot * width + i, mask=i < width, other=0.0).to(tl.float32)
        total += weight * tl.load(x + r * width + i, mask=i < width, other=0.0).to(tl.float32)
    tl.store(outputs + r * slots + slot, tl.sum(total, axis=0))


def refine(x: Tensor, table: Tensor, likely: int, outputs: Tensor, part: int = PART) -> None:
    """Replace the ``likely`` (a power of two) largest of outputs [R, slots] float32 by x [R, width] times their rows of
    ``table`` [slots, width]; there are at least so many slots, and `MOST_SLOTS` at most. ``part`` slots are a program's.
    """
    rows, slots = outputs.shape
    parts = -(-slots // part)
    keys = torch.empty(rows, parts, likely, dtype=torch.int64, device=outputs.device)
    width = x.shape[1]
    largest_of_parts[(rows, parts)](outputs, keys, slots, likely, part, num_warps=8)
    refine_largest[(rows, likely)](
        keys, x, table, outputs, slots, width, parts * likely,
        likely, block_of(parts * likely, least=2 * likely), _WIDTH, num_warps=8,
    )  # fmt: skip
