"""One row each for several groups, from packed bytes to packed bytes in one launch: what many decoding clients ask at once.

A launch costs more than a small product, and the rows of clients that are at different layers have no group in common. Rows,
and a table of where everything is, go to the GPU in one copy; the results come back in one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numba import types
from numpy.typing import NDArray

from veil.kernels import joined_rows as row
from veil.kernels.cpu.addresses import copy_bytes
from veil.kernels.cpu.kept import jitted
from veil.kernels.cuda import launching
from veil.kernels.cuda.device import interpreted, target
from veil.kernels.cuda.packing import part_of
from veil.kernels.cuda.product import weights_tile
from veil.kernels.interface import GroupResults, GroupRows

Tensor = torch.Tensor
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

MOST_ROWS = 64
"""Rows of one launch."""

_ROWS = 8  # outputs of a program: packed results of any bits end at a whole byte
_SET = 9  # words of a set in the table
_ROW = 3  # and of a row
_TABLE_WORDS = MOST_ROWS * (_SET + _ROW)
_ALIGNED = 16
_AFTER = 4  # bytes that are read behind the last row


@triton.jit(do_not_specialize=["sets"])
def answer_joined(  # type: ignore[no-untyped-def]
    table, data, anchor, out, sets,
    SETS: tl.constexpr, SET: tl.constexpr, ROW: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Packed rows of several groups → packed ``W·b - h`` of each; a program makes ROWS outputs of a row.

    A set is rows of one group: programs that take the same weights follow one another. Its words in the table are the
    program behind its last, its first, its first row, rows, units of 16 bytes from ``anchor`` to its weights, outputs, units
    of UNIT inputs, bits of inputs, bits of results; a row's are units of 16 bytes to its data, the address of its shares,
    and its place in ``out``.
    """
    job = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, SETS)
    ends = tl.load(table + SET * k, mask=k < sets, other=9223372036854775807)
    own = table + SET * tl.sum((ends <= job).to(tl.int32), axis=0)
    job -= tl.load(own + 1)
    first, count = tl.load(own + 2), tl.load(own + 3)
    weights = anchor + tl.load(own + 4) * 16
    rows = tl.load(own + 5)
    width = (tl.load(own + 6) * UNIT).to(tl.int32)
    up, down = tl.load(own + 7).to(tl.int32), tl.load(own + 8).to(tl.int32)
    message = table + SETS * SET + ROW * (first + job % count)
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


@jitted(nogil=True)
def lay_out(rows, sent, table, room, anchor, unit, order, turns, launch):  # type: ignore[no-untyped-def]
    """Write rows of several groups and their table where they are sent from, and what a launch of them takes to its words.

    ``rows`` [n, columns] are of `veil.kernels.joined_rows`; ``turns`` [n, 3] get where the results of each are. ``sent``
    uint8 begins with ``table`` int64; ``room`` are the bytes for results. False, and nothing is written, where there is too
    little.
    """
    count, at, end = len(rows), 8 * _TABLE_WORDS, 0
    for n in range(count):
        at += rows[n, row.COUNT] * ((rows[n, row.ROW_BYTES] + _ALIGNED - 1) // _ALIGNED * _ALIGNED)
        end += rows[n, row.COUNT] * ((rows[n, row.OUTPUTS] * rows[n, row.DOWN] + 7) // 8)
    launch[launching.SENT_BYTES], launch[launching.CAME_BYTES] = at, end
    if at + _AFTER > len(sent) or end > room:
        return False
    for n in range(count):
        place = n
        while place > 0 and _follows(rows, order[place - 1], n):
            order[place] = order[place - 1]
            place -= 1
        order[place] = n
    sets, placed, programs, at, end, before = -1, 0, 0, 8 * _TABLE_WORDS, 0, -1
    for turn in range(count):
        own = rows[order[turn]]
        outputs, number = own[row.OUTPUTS], own[row.COUNT]
        if before < 0 or own[row.WEIGHTS] != rows[before, row.WEIGHTS] or outputs != rows[before, row.OUTPUTS]:
            sets += 1
            entry = table[_SET * sets : _SET * sets + _SET]
            entry[1], entry[2], entry[3] = programs, placed, 0
            entry[4], entry[5] = (own[row.WEIGHTS] - anchor) // _ALIGNED, outputs
            entry[6], entry[7], entry[8] = own[row.WIDTH] // unit, own[row.UP], own[row.DOWN]
        before = order[turn]
        programs += number * ((outputs + _ROWS - 1) // _ROWS)
        entry = table[_SET * sets : _SET * sets + _SET]
        entry[0], entry[3] = programs, entry[3] + number
        each, step = (outputs * own[row.DOWN] + 7) // 8, (own[row.ROW_BYTES] + _ALIGNED - 1) // _ALIGNED * _ALIGNED
        turns[before, row.FIRST] = end
        for n in range(number):
            line = table[MOST_ROWS * _SET + _ROW * placed : MOST_ROWS * _SET + _ROW * (placed + 1)]
            line[0], line[1], line[2] = at // _ALIGNED, own[row.SHARES] + n * own[row.STRIDE], end
            copy_bytes(
                types.uintp(sent.ctypes.data + at),
                types.uintp(own[row.DATA] + n * own[row.ROW_BYTES]),
                types.uintp(own[row.ROW_BYTES]),
            )
            placed, at, end = placed + 1, at + step, end + each
        turns[before, row.END] = end
    launch[launching.PROGRAMS], launch[launching.ARGUMENTS + 4] = programs, sets + 1
    return True


@jitted(nogil=True)
def _follows(rows, one, other):  # type: ignore[no-untyped-def]
    """Whether a request's group comes after another's."""
    if rows[one, row.WEIGHTS] != rows[other, row.WEIGHTS]:
        return rows[one, row.WEIGHTS] > rows[other, row.WEIGHTS]
    return rows[one, row.OUTPUTS] > rows[other, row.OUTPUTS]


@jitted(nogil=True)
def begin(rows, sent, table, room, anchor, unit, order, turns, launch):  # type: ignore[no-untyped-def]
    """`lay_out`, then the launch; the driver's first error, 0, or -1 where there is too little room."""
    if not lay_out(rows, sent, table, room, anchor, unit, order, turns, launch):
        return -1
    return launching.launch(launch)


class Joined:
    """Answers rows of several groups on the current device, for one thread: memory on both sides, and a stream of its own.

    The stream has priority over what prepares rows meanwhile.
    """

    most_rows = MOST_ROWS

    def __init__(self) -> None:
        self._anchor = torch.empty(_ALIGNED, dtype=torch.int8, device=target())
        self._order = np.zeros(MOST_ROWS, np.int64)
        self._rows = np.zeros((MOST_ROWS, row.COLUMNS), np.int64)
        self._turns = np.zeros((MOST_ROWS, row.REPLY_COLUMNS), np.int64)
        self._widths: set[int] = set()
        self._launches: dict[tuple[int, bool, int], I64] = {}
        self._words = np.zeros(launching.ARGUMENTS + launching.MOST_ARGUMENTS, np.int64)
        self._anchor_at = self._anchor.data_ptr()
        self._sent = _staged(0)
        self._both = [_staged(0), _staged(0)]
        self._data = self._out = self._anchor
        self._make_room(8 * _TABLE_WORDS + _AFTER, 1)
        self._under_way: I64 | None = None
        self._end = 0
        self._stream: torch.cuda.Stream | None = None
        self._direct = False
        if not interpreted():
            self._stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
            self._direct = launching.load_driver()

    def answer(self, asked: Sequence[GroupRows]) -> GroupResults:
        """See `interface.Kernels.answer_groups`; at most `MOST_ROWS` rows."""
        held, each, ends = [], [], []
        for one in asked:
            outputs, width = one.weights.shape
            data = np.ascontiguousarray(one.data)
            held.append(data)
            self._widths.add(width)
            weights, (up, down), place = one.weights.data_ptr(), one.bits, data.ctypes.data
            for part in one.shares:
                stride = 4 * part.material.shape[1]
                shares = part.material.data_ptr() + part.first * stride + 4 * one.column
                nbytes = data.shape[1]
                each.append((weights, outputs, width, up, down, shares, stride, place, nbytes, part.count))
                place += part.count * nbytes
            ends.append(len(each))
        rows, turns = self._rows[: len(each)], self._turns[: len(each)]
        rows[:] = each
        self.begin(rows, turns)
        packed, found, first = self.finish(), turns.tolist(), 0
        places = []
        for end in ends:
            places.append((found[first][row.FIRST], found[end - 1][row.END]))
            first = end
        return GroupResults(packed, places)

    def take_widths(self, widths: Iterable[int]) -> None:
        """Know the inputs of all groups whose rows `begin` gets."""
        self._widths.update(widths)

    def begin(self, rows: I64, turns: I64) -> None:
        """See `interface.JoinedProduct.begin`."""
        unit = _ALIGNED if all(width % _ALIGNED == 0 for width in self._widths) else 1
        block = next((block for block in (256, 128) if all(width % block == 0 for width in self._widths)), 0)
        variant = block or 256, block > 0, unit
        known = self._launches.get(variant)
        self._both.reverse()  # what the last launch gave holds until the next
        while True:
            words = self._words if known is None else known
            words[launching.CAME] = self._both[0].data_ptr()
            given = rows, self._sent_bytes, self._table, len(self._both[0]), self._anchor_at, unit, self._order, turns, words
            failed = (0 if lay_out(*given) else -1) if known is None else begin(*given)
            if failed >= 0:
                break
            self._make_room(int(words[launching.SENT_BYTES]) + _AFTER, int(words[launching.CAME_BYTES]))
            known = None
        self._under_way, self._end = (None if known is None else known), int(words[launching.CAME_BYTES])
        if failed:
            raise RuntimeError(f"the CUDA driver's error {failed} while rows were answered")
        if known is None and self._end:
            self._launch(words, variant)

    def finish(self) -> U8:
        """See `interface.JoinedProduct.finish`."""
        if self._under_way is not None:
            failed = launching.wait(self._under_way)
            if failed:
                raise RuntimeError(f"the CUDA driver's error {failed} while rows were answered")
        elif self._stream is not None:
            self._stream.synchronize()
        packed: U8 = self._both[0].numpy()[: self._end]
        return packed

    def _launch(self, words: I64, variant: tuple[int, bool, int]) -> None:
        """By PyTorch's copies and Triton's launcher, the first time or where the driver is not known."""
        at, end, sets = int(words[launching.SENT_BYTES]), self._end, int(words[launching.ARGUMENTS + 4])
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._data[:at].copy_(self._sent[:at], non_blocking=True)
            compiled = answer_joined[(int(words[launching.PROGRAMS]),)](
                self._data[: 8 * _TABLE_WORDS].view(torch.int64), self._data, self._anchor, self._out, sets,
                MOST_ROWS, _SET, _ROW, variant[2], variant[1], _ROWS, variant[0], num_warps=1,
            )  # fmt: skip
            self._both[0][:end].copy_(self._out[:end], non_blocking=True)
        if self._stream is not None and self._direct:
            self._launches[variant] = self._words_of(compiled, self._stream)

    def _words_of(self, compiled: Any, stream: torch.cuda.Stream) -> I64:
        """What `launching.launch` takes of a kernel that Triton compiled and loaded."""
        words = np.zeros(launching.ARGUMENTS + launching.MOST_ARGUMENTS, np.int64)
        words[launching.FUNCTION] = compiled.function
        words[launching.STREAM] = stream.cuda_stream
        words[launching.THREADS] = 32 * compiled.metadata.num_warps
        words[launching.SHARED] = compiled.metadata.shared
        words[launching.SENT], words[launching.DATA] = self._sent.data_ptr(), self._data.data_ptr()
        words[launching.OUT] = self._out.data_ptr()
        pointers = (self._data, self._data, self._anchor, self._out)
        words[launching.ARGUMENTS : launching.ARGUMENTS + 4] = [own.data_ptr() for own in pointers]
        return words

    def _make_room(self, sent: int, came: int) -> None:
        """Have memory for so many bytes, on both sides."""
        self._launches.clear()
        if len(self._sent) < sent:
            self._sent = _staged(2 * sent)
            self._data = torch.empty(2 * sent, dtype=torch.uint8, device=target())
        if len(self._both[0]) < came:
            self._both = [_staged(2 * came), _staged(2 * came)]
            self._out = torch.empty(2 * came, dtype=torch.uint8, device=target())
        self._sent_bytes = self._sent.numpy()
        self._table: I64 = self._sent_bytes[: 8 * _TABLE_WORDS].view(np.int64)


def _staged(nbytes: int) -> Tensor:
    """Memory of the host that the device reads and writes by itself."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=not interpreted() and nbytes > 0)


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
