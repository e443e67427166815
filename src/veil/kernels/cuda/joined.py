"""One row each for several groups, from packed bytes to packed bytes in one launch: what many decoding clients ask at once.

A launch costs more than a small product, and the rows of clients that are at different layers have no group in common. Rows,
and a table of where everything is, go to the GPU in one copy; the results come back in one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from veil.kernels.cuda.device import interpreted, target
from veil.kernels.cuda.packing import part_of
from veil.kernels.cuda.product import weights_tile
from veil.kernels.interface import GroupResults, GroupRows
from veil.params import packed_bytes

Tensor = torch.Tensor
U8 = NDArray[np.uint8]

MOST_ROWS = 64
"""Rows of one launch."""

_ROWS = 8  # outputs of a program: packed results of any bits end at a whole byte
_SET = 9  # words of a set in the table
_ROW = 3  # and of a row
_TABLE_WORDS = MOST_ROWS * (_SET + _ROW)
_ALIGNED = 16


@triton.jit(do_not_specialize=["sets"])
def answer_joined(  # type: ignore[no-untyped-def]
    table, data, anchor, out, sets,
    SETS: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Packed rows of several groups → packed ``W·b - h`` of each; a program makes ROWS outputs of a row.

    A set is rows of one group: programs that take the same weights follow one another. Its words in the table are the
    program behind its last, its first, its first row, rows, units of 16 bytes from ``anchor`` to its weights, outputs, units
    of UNIT inputs, bits of inputs, bits of results; a row's are units of 16 bytes to its data, the address of its shares,
    and its place in ``out``.
    """
    job = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, SETS)
    ends = tl.load(table + 9 * k, mask=k < sets, other=9223372036854775807)
    own = table + 9 * tl.sum((ends <= job).to(tl.int32), axis=0)
    job -= tl.load(own + 1)
    first, count = tl.load(own + 2), tl.load(own + 3)
    weights = anchor + tl.load(own + 4) * 16
    rows = tl.load(own + 5)
    width = (tl.load(own + 6) * UNIT).to(tl.int32)
    up, down = tl.load(own + 7).to(tl.int32), tl.load(own + 8).to(tl.int32)
    message = table + 576 + 3 * (first + job % count)
    words = data.to(tl.pointer_type(tl.uint32)) + tl.load(message) * 4
    shares = tl.load(message + 1).to(tl.pointer_type(tl.uint32))
    tile = job // count
    r = tile * ROWS + tl.arange(0, ROWS)
    at = weights + tl.minimum(r, rows - 1)[:, None] * width
    total = tl.zeros([ROWS, BLOCK], dtype=tl.int32)
    for start in range(0, width, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = weights_tile(at + j[None, :], (j < width)[None, :], EVEN)
        x = _top_of_word(words, j, j < width, up).to(tl.int32, bitcast=True)
        total += w.to(tl.int32) * x[None, :]
    value = tl.sum(total, axis=1).to(tl.uint32, bitcast=True)
    value -= tl.load(shares + r, mask=r < rows, other=0)
    half = tl.where(down == 32, 0, 1 << tl.maximum(31 - down, 0)).to(tl.uint32)
    value = tl.where(r < rows, (value + half) >> (32 - down).to(tl.uint32), 0)
    k = tl.arange(0, 4 * ROWS)
    byte = part_of(value[:, None], tl.arange(0, ROWS)[:, None] * down - 8 * k[None, :], 8) & 0xFF
    at_byte = tile * down + k
    inside = (k < down) & (at_byte < (rows * down + 7) // 8)
    tl.store(out + tl.load(message + 2) + at_byte, tl.sum(byte.to(tl.int32), axis=0).to(tl.uint8), mask=inside)


@triton.jit
def _top_of_word(words, j, inside, bits):  # type: ignore[no-untyped-def]
    """Word j of packed words of any number of bits, as the top bits of 32."""
    position = j * bits
    at = words + position // 32
    shift = (position % 32).to(tl.uint32)
    word = tl.load(at, mask=inside, other=0) >> shift
    above = tl.load(at + 1, mask=inside & (shift + bits > 32), other=0)
    word |= tl.where(shift > 0, above << ((32 - shift) & 31), 0).to(tl.uint32)
    return word << (32 - bits).to(tl.uint32)


class Joined:
    """Answers rows of several groups on the current device, for one thread: memory on both sides, and a stream of its own.

    The stream has priority over what prepares rows meanwhile.
    """

    def __init__(self) -> None:
        self._anchor = torch.empty(_ALIGNED, dtype=torch.int8, device=target())
        self._sent, self._came = _staged(0), _staged(0)
        self._data = self._out = self._anchor
        self._done: torch.cuda.Event | None = None
        if not interpreted():
            torch.cuda.set_stream(torch.cuda.Stream(priority=-1))  # type: ignore[no-untyped-call]  # this thread's
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def answer(self, asked: Sequence[GroupRows]) -> GroupResults:
        """See `interface.Kernels.answer_groups`; at most `MOST_ROWS` rows."""
        order = sorted(range(len(asked)), key=lambda n: (asked[n].weights.data_ptr(), asked[n].bits))
        sets: list[tuple[int, ...]] = []
        rows: list[tuple[int, int, int]] = []
        anchor, places = self._anchor.data_ptr(), [(0, 0)] * len(asked)
        widths, programs, at, end = set[int](), 0, 8 * _TABLE_WORDS, 0
        before: tuple[object, ...] = ()
        copies: list[tuple[int, U8]] = []
        for n in order:
            one = asked[n]
            outputs, width = one.weights.shape
            address, count = one.weights.data_ptr(), len(one.data)
            row_bytes = packed_bytes(outputs, one.bits[1])
            places[n] = end, end + count * row_bytes
            like = address, outputs, one.bits
            tiles = -(-outputs // _ROWS)
            if like == before:
                begin, first, held = sets[-1][1:4]
                programs = begin + (held + count) * tiles
                sets[-1] = programs, begin, first, held + count, *sets[-1][4:]
            else:
                begin, programs = programs, programs + count * tiles
                sets.append((programs, begin, len(rows), count, address - anchor, outputs, width, *one.bits))
                widths.add(width)
                before = like
            step = -(-one.data.shape[1] // _ALIGNED) * _ALIGNED
            place = 0
            for part in one.shares:
                stride = part.material.shape[1]
                start = part.material.data_ptr() + 4 * (part.first * stride + one.column)
                for row in range(part.count):
                    rows.append((at // _ALIGNED, start + 4 * stride * row, end))
                    copies.append((at, one.data[place]))
                    at, end, place = at + step, end + row_bytes, place + 1
        self._make_room(at + 4, end)
        unit = _ALIGNED if all(width % _ALIGNED == 0 for width in widths) else 1
        self._lay_out(sets, rows, copies, unit)
        block, warps = _tile(widths)
        even = all(width % block == 0 for width in widths)
        if programs:
            self._data[:at].copy_(self._sent[:at], non_blocking=True)
            answer_joined[(programs,)](
                self._data[: 8 * _TABLE_WORDS].view(torch.int64), self._data, self._anchor, self._out, len(sets),
                max(2, 1 << (len(sets) - 1).bit_length()), unit, even, _ROWS, block, num_warps=warps,
            )  # fmt: skip
            self._came[:end].copy_(self._out[:end], non_blocking=True)
        if self._done is not None:
            self._done.record()
            self._done.synchronize()
        return GroupResults(self._came[:end].numpy(), places)

    def _lay_out(
        self, sets: list[tuple[int, ...]], rows: list[tuple[int, int, int]], copies: list[tuple[int, U8]], unit: int
    ) -> None:
        """Write the table and the rows where they are sent from."""
        sent: U8 = self._sent.numpy()
        table = sent[: 8 * _TABLE_WORDS].view(np.int64)
        own = np.array(sets, np.int64).reshape(-1, _SET)
        own[:, 4] //= _ALIGNED
        own[:, 6] //= unit
        table[: own.size] = own.reshape(-1)
        first = MOST_ROWS * _SET
        table[first : first + _ROW * len(rows)] = np.array(rows, np.int64).reshape(-1)
        for at, data in copies:
            sent[at : at + len(data)] = data

    def _make_room(self, sent: int, came: int) -> None:
        if len(self._sent) < sent:
            self._sent = _staged(2 * sent)
            self._data = torch.empty(2 * sent, dtype=torch.uint8, device=target())
        if len(self._came) < came:
            self._came = _staged(2 * came)
            self._out = torch.empty(2 * came, dtype=torch.uint8, device=target())


def _staged(nbytes: int) -> Tensor:
    """Memory of the host that the device reads and writes by itself."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=not interpreted() and nbytes > 0)


def _tile(widths: set[int]) -> tuple[int, int]:
    """Inputs a step and warps of a program: the largest step that divides all widths, if there is one of 128 at least."""
    for block in (512, 256, 128):
        if all(width % block == 0 for width in widths):
            return block, 2
    return 256, 2


class JoinedThreads(threading.local):
    """The `Joined` of each thread and device."""

    def __init__(self) -> None:
        self._own: dict[int, Joined] = {}

    def answer(self, asked: Sequence[GroupRows]) -> GroupResults:
        """See `Joined.answer`."""
        device = 0 if interpreted() else torch.cuda.current_device()
        if device not in self._own:
            self._own[device] = Joined()
        return self._own[device].answer(asked)
