"""Where the rows of several batches' material are, for kernels that read all of them in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from veil.kernels.cuda.device import put
from veil.kernels.interface import Rows

Tensor = torch.Tensor


class Located(NamedTuple):
    """Row t begins at word ``offset + t·stride`` of ``material``; with a ``table``, ``offset`` words after its address."""

    material: Tensor
    offset: int
    stride: int
    table: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor, int, int, bool]:
        """What `row_start` takes besides the row: uint32 words or int64 addresses [R], offset, stride, whether addresses."""
        return (self.material, self.offset, self.stride, False) if self.table is None else (self.table, self.offset, 0, True)


@triton.jit
def row_start(base, offset, stride, t, TABLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A pointer to the first word wanted of row t; see `Located`."""
    if TABLE:
        return tl.load(base + t).to(tl.pointer_type(tl.uint32)) + offset
    else:
        return base + offset + t * stride


def located(rows: Sequence[Rows], column: int) -> Located:
    """The rows of all parts from ``column`` on; there is at least one row."""
    parts = [(part.material.contiguous(), part.first, part.count) for part in rows if part.count]
    material, first, _ = parts[0]
    stride = material.shape[1]
    if len(parts) == 1:
        return Located(material, first * stride + column, stride, None)
    places = tuple((own.data_ptr() + 4 * own.shape[1] * start, 4 * own.shape[1], count) for own, start, count in parts)
    return Located(material, column, 0, _table(places, material.device))


@lru_cache(maxsize=64)
def _table(places: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """The addresses of rows; made anew only for other places, as all groups of a pass use the same."""
    return put(np.concatenate([start + step * np.arange(count, dtype=np.int64) for start, step, count in places]))
