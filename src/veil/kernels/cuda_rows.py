"""Rows of a forward pass side by side, from the matrices that their batches were made in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def gathered(rows: Sequence[tuple[Tensor, int]], start: int, stop: int) -> Tensor:
    """Columns ``start`` to ``stop`` of some rows, each a matrix and a place in it → [R, stop - start] uint32, contiguous.

    Neighbours of one matrix are taken together: a prompt costs a few copies for each batch of masks, not for each row.
    """
    parts: list[Tensor] = []
    first = 0
    for at in range(1, len(rows) + 1):
        matrix, place = rows[first]
        if at < len(rows) and rows[at][0] is matrix and rows[at][1] == place + at - first:
            continue
        parts.append(matrix.view(torch.int32)[place : place + at - first, start:stop])
        first = at
    joined = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    return joined.view(torch.uint32)
