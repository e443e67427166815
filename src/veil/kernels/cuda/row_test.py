"""The bound and the running test of a pass of one row on a GPU: one launch, whose verdict comes to the host by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from veil.kernels.cuda import checking
from veil.kernels.cuda.device import block_of, interpreted, put
from veil.kernels.cuda.rows import Located
from veil.kernels.interface import SignVectors
from veil.kernels.row_test import RowChunks

Tensor = torch.Tensor
F64 = NDArray[np.float64]

_BLOCK = 64


@triton.jit(do_not_specialize=["chunks"])
def add_row(  # type: ignore[no-untyped-def]
    residuals, whitening, places, factors, limits, sums, rows, turns, verdict, chunks,
    MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `veil.kernels.row_test.AddRow`; BLOCK chunks of at most MOST residuals a program. Its word of ``verdict`` has how
    many rows it has tested and, as the last bit, whether one of the last is not within its limits.

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
    turn = tl.load(turns + tl.program_id(0)) + 1
    tl.store(turns + tl.program_id(0), turn)
    tl.store(verdict + tl.program_id(0), 2 * turn + tl.max(beyond, axis=0))


class RowPlace:
    """Where a group's results of a pass of one row are noted, in ``words`` [GIVEN], until their residuals are computed."""

    def __init__(self, words: NDArray[np.int64]) -> None:
        self._words = words
        self._held: tuple[Tensor, ...] = ()

    def take(self, data: Tensor, sent: Tensor, shares: Located, scales: Tensor) -> None:
        """Note packed results [1, bytes], the integers sent [1, width] int32, where shares are, and scales [1] float64."""
        words = shares.material
        self._words[:] = data.data_ptr(), sent.data_ptr(), words.data_ptr() + 4 * shares.offset, scales.data_ptr()
        self._held = data, sent, words, scales

    def forget(self) -> tuple[Tensor, ...]:
        """Note nothing any more; the tensors that were noted."""
        held, self._held = self._held, ()
        if held:
            self._words[:] = 0
        return held


class GpuRowTest:
    """See `veil.kernels.row_test.RowTest`; what a graph was recorded with is kept apart from what other passes are given."""

    def __init__(self, vectors: Sequence[tuple[SignVectors, int]], chunks: RowChunks, sums: F64, rows: F64) -> None:
        self._came = np.zeros((len(vectors), checking.GIVEN), np.int64)
        self.places = [RowPlace(words) for words in self._came]
        sizes = chunks.sizes
        places = np.stack([sizes, np.cumsum(sizes) - sizes, np.cumsum(sizes * sizes) - sizes * sizes])
        self._whitening, self._factors, self._places = put(chunks.whitening), put(chunks.factors), put(places)
        self._limits = put(np.array([chunks.bound, chunks.most]))
        self._host = sums, rows
        self._sums, self._rows = put(sums), put(rows)
        self._here = True  # the host's sums are not older
        counts = [own.count for own, _ in vectors]
        self._vectors = vectors  # the words below say where they are
        self._groups = put(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._known = put(_known(vectors))
        self._chunk = block_of(max((own.longest for own, _ in vectors), default=1))
        self._given = put(np.zeros((len(counts), checking.GIVEN), np.int64))
        self._recorded = torch.zeros_like(self._given)
        self._to_record: NDArray[np.int64] | None = None
        self._residuals = put(np.zeros((1, sum(counts))))
        self._block = block_of(int(sizes.max(initial=1)), least=1)
        self._programs = -(-len(sizes) // _BLOCK)
        pinned = not interpreted() and self._programs > 0
        self._turns, self._turn = put(np.zeros(self._programs, np.int64)), 0
        self._verdict = torch.zeros(self._programs, dtype=torch.int64, pin_memory=pinned)  # the host's, written by the GPU
        self._words = self._verdict.numpy()

    @property
    def residuals(self) -> F64:
        """See `RowTest.residuals`."""
        self.compute()
        found: F64 = self._residuals[0].cpu().numpy()
        return found

    def ready(self) -> None:
        """See `RowTest.ready`."""
        if self._to_record is not None:
            self._recorded.copy_(put(self._to_record))
            self._to_record = None
        if self._here:
            for own, host in zip((self._sums, self._rows), self._host, strict=True):
                own.copy_(put(host))
            self._here = False

    def compute(self) -> None:
        """See `RowTest.compute`."""
        if not self._came.any():
            return
        given = self._came.copy()
        held = [own.forget() for own in self.places]  # nothing else may take its memory before it is read
        if _records():
            self._to_record, words = given, self._recorded
        else:
            words = self._given.copy_(put(given))
        checking.row_residuals(self._groups, self._known, words, self._residuals, self._chunk)
        del held

    def launch(self) -> None:
        """See `RowTest.launch`.

        A graph that is recorded stays one line of kernels, which costs the host nothing for each of them: a branch did.
        """
        if not _records():
            self.ready()
            self._turn += 1
        self.compute()
        if self._programs:
            add_row[(self._programs,)](
                self._residuals, self._whitening, self._places, self._factors, self._limits, self._sums, self._rows,
                self._turns, self._verdict, self._places.shape[1], self._block, _BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip

    def replayed(self) -> None:
        """See `RowTest.replayed`."""
        self._turn += 1

    def passed(self) -> bool:
        """See `RowTest.passed`; where the verdict is there already, nothing asks the GPU, which takes some 40 µs."""
        words: list[int] = self._words.tolist()
        if any(word >> 1 != self._turn for word in words):
            if not interpreted():
                torch.cuda.current_stream().synchronize()
            words = self._words.tolist()
            self._turn = words[0] >> 1  # more than that: a replay was cut off before it was counted
        return not any(word & 1 for word in words)

    def forget(self) -> None:
        """See `RowTest.forget`."""
        for own in self.places:
            own.forget()

    def settle(self) -> None:
        """See `RowTest.settle`."""
        if not self._here:
            for own, host in zip((self._sums, self._rows), self._host, strict=True):
                host[...] = own.cpu().numpy()
            self._here = True


def _records() -> bool:
    return not interpreted() and torch.cuda.is_current_stream_capturing()


def _known(vectors: Sequence[tuple[SignVectors, int]]) -> NDArray[np.int64]:
    """What the kernel knows of each group, [groups, KNOWN]; see `veil.kernels.cuda.checking`."""
    words, first = np.zeros((len(vectors), checking.KNOWN), np.int64), 0
    for row, (own, bits) in zip(words, vectors, strict=True):
        arrays = (own.edges, own.signs, own.sums, own.inverse)
        row[: checking.WIDTH] = [array.data_ptr() for array in arrays]
        row[checking.WIDTH], row[checking.SLOTS] = own.sums.shape[2], own.signs.shape[1]
        row[checking.VECTORS], row[checking.BITS], row[checking.FIRST] = own.signs.shape[0], bits, first
        first += own.count
    return words
