"""The bound and the running test of a pass of one row on a GPU: one launch, whose verdict comes to the host by itself."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from veil.kernels.cuda import graphs
from veil.kernels.cuda.device import interpreted, put
from veil.kernels.row_test import RowChunks

Tensor = torch.Tensor
F64 = NDArray[np.float64]

_BLOCK = 64


@triton.jit(do_not_specialize=["chunks"])
def add_row(  # type: ignore[no-untyped-def]
    residuals, whitening, places, factors, limits, sums, rows, verdict, chunks,
    MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `veil.kernels.row_test.AddRow`; BLOCK chunks of at most MOST residuals a program, whose word of ``verdict`` is 0
    where all are within their limits.

    ``places`` [3, chunks] are each chunk's residuals, its first one, and its matrix's first element; ``limits`` bound and
    most.
    """
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = c < chunks
    size = tl.load(places + c, mask=here, other=0)
    place = tl.load(places + chunks + c, mask=here, other=0)
    start = tl.load(places + 2 * chunks + c, mask=here, other=0)
    bound, most = tl.load(limits), tl.load(limits + 1)
    k = tl.arange(0, MOST)
    white = tl.zeros([BLOCK, MOST], dtype=tl.float64)
    beyond = tl.zeros([BLOCK], dtype=tl.int32)
    for column in range(MOST):
        there = here & (column < size)
        r = tl.load(residuals + place + column, mask=there, other=0.0)
        beyond |= (~(tl.abs(r) <= bound)).to(tl.int32)
        at = start[:, None] + k[None, :] * size[:, None] + column
        m = tl.load(whitening + at, mask=there[:, None] & (k[None, :] < size[:, None]), other=0.0)
        white += m * r[:, None]
    square = tl.sum(white * white, axis=1)
    count = tl.load(rows + c, mask=here, other=0.0) + 1.0
    tl.store(rows + c, count, mask=here)
    begins = 1.0 / (count * (count + 1.0))
    unit = tl.exp(0.01 * square)
    five = (unit * unit) * (unit * unit) * unit
    ten = five * five
    for tilt in tl.static_range(3):
        if tilt == 0:
            power = unit * unit
        elif tilt == 1:
            power = ten * five
        else:
            power = (ten * ten) * (ten * ten)
        own = tilt * chunks + c
        value = tl.load(sums + own, mask=here, other=0.0) + begins
        value *= power * tl.load(factors + own, mask=here, other=0.0)
        tl.store(sums + own, value, mask=here)
        beyond |= (here & ~(value <= most)).to(tl.int32)
    tl.store(verdict + tl.program_id(0), tl.max(beyond, axis=0))


class GpuRowTest:
    """See `veil.kernels.row_test.RowTest`; residuals [1, Σ sizes] are on the GPU, sums and rows the host's."""

    def __init__(self, residuals: Tensor, chunks: RowChunks, sums: F64, rows: F64) -> None:
        sizes = chunks.sizes
        places = np.stack([sizes, np.cumsum(sizes) - sizes, np.cumsum(sizes * sizes) - sizes * sizes])
        self._residuals, self._host = residuals, (sums, rows)
        self._whitening, self._factors, self._places = put(chunks.whitening), put(chunks.factors), put(places)
        self._limits = put(np.array([chunks.bound, chunks.most]))
        self._sums, self._rows = put(sums), put(rows)
        self._block = 1 << max(int(sizes.max(initial=1)) - 1, 0).bit_length()
        self._programs = -(-len(sizes) // _BLOCK)
        self._verdict = put(np.zeros(self._programs, np.int32))
        self._seen = torch.zeros(self._programs, dtype=torch.int32, pin_memory=not interpreted() and self._programs > 0)
        self._words = self._seen.numpy()
        self._here = True  # the host's sums are not older

    def ready(self) -> None:
        """See `RowTest.ready`."""
        if self._here:
            for own, host in zip((self._sums, self._rows), self._host, strict=True):
                own.copy_(put(host))
            self._here = False

    def launch(self) -> None:
        """See `RowTest.launch`; in a recorded graph, beside what follows."""
        if not self._programs:
            return
        with graphs.branch(self._residuals):
            add_row[(self._programs,)](
                self._residuals, self._whitening, self._places, self._factors, self._limits, self._sums, self._rows,
                self._verdict, self._places.shape[1], self._block, _BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            self._seen.copy_(self._verdict, non_blocking=True)

    def passed(self) -> bool:
        """See `RowTest.passed`."""
        if not interpreted():
            torch.cuda.current_stream().synchronize()
        return not self._words.any()

    def settle(self) -> None:
        """See `RowTest.settle`."""
        if not self._here:
            for own, host in zip((self._sums, self._rows), self._host, strict=True):
                host[...] = own.cpu().numpy()
            self._here = True
