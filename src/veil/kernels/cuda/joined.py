"""One row each for several groups, from packed bytes to packed bytes in one launch: what many decoding clients ask at once.

A launch costs more than a small product, and the rows of clients that are at different layers have no group in common. Rows,
and a table of where everything is, go to the GPU in one copy; the results come back in one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from veil.kernels.cuda import launching
from veil.kernels.cuda.device import interpreted, target
from veil.kernels.cuda.packing import part_of
from veil.kernels.cuda.product import weights_tile
from veil.kernels.interface import GroupResults, GroupRows
from veil.params import packed_bytes

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


class Joined:
    """Answers rows of several groups on the current device, for one thread: memory on both sides, and a stream of its own.

    The stream has priority over what prepares rows meanwhile.
    """

    def __init__(self) -> None:
        self._anchor = torch.empty(_ALIGNED, dtype=torch.int8, device=target())
        self._sent, self._came = _staged(0), _staged(0)
        self._data = self._out = self._anchor
        self._widths: set[int] = set()
        self._launches: dict[tuple[int, bool, int], I64] = {}
        self._stream: torch.cuda.Stream | None = None
        self._direct = False
        if not interpreted():
            self._stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
            torch.cuda.set_stream(self._stream)  # this thread's
            self._direct = launching.load_driver()

    def answer(self, asked: Sequence[GroupRows]) -> GroupResults:
        """See `interface.Kernels.answer_groups`; at most `MOST_ROWS` rows."""
        each = [(one.weights.data_ptr(), one.bits, n) for n, one in enumerate(asked)]
        each.sort()
        sets: list[tuple[int, ...]] = []
        rows: list[tuple[int, int, int]] = []
        copies: list[tuple[int, U8]] = []
        anchor, places = self._anchor.data_ptr(), [(0, 0)] * len(asked)
        programs, at, end = 0, 8 * _TABLE_WORDS, 0
        before: tuple[object, ...] = ()
        for address, bits, n in each:
            one = asked[n]
            outputs, width = one.weights.shape
            count, row_bytes = len(one.data), packed_bytes(outputs, bits[1])
            places[n] = end, end + count * row_bytes
            tiles = -(-outputs // _ROWS)
            if before == (address, outputs, bits):
                begin, first, held = sets[-1][1:4]
                programs = begin + (held + count) * tiles
                sets[-1] = programs, begin, first, held + count, *sets[-1][4:]
            else:
                begin, programs = programs, programs + count * tiles
                sets.append((programs, begin, len(rows), count, address - anchor, outputs, width, *bits))
                self._widths.add(width)
                before = address, outputs, bits
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
        unit = _ALIGNED if all(width % _ALIGNED == 0 for width in self._widths) else 1
        self._lay_out(sets, rows, copies, unit)
        if end:
            self._launch(programs, len(sets), at, end, unit)
        return GroupResults(self._came[:end].numpy(), places)

    def _lay_out(
        self, sets: list[tuple[int, ...]], rows: list[tuple[int, int, int]], copies: list[tuple[int, U8]], unit: int
    ) -> None:
        """Write the table and the rows where they are sent from."""
        sent: U8 = self._sent.numpy()
        table = sent[: 8 * _TABLE_WORDS].view(np.int64)
        own = np.array(sets, np.int64)
        own[:, 4] //= _ALIGNED
        own[:, 6] //= unit
        table[: own.size] = own.reshape(-1)
        first = MOST_ROWS * _SET
        table[first : first + _ROW * len(rows)] = np.array(rows, np.int64).reshape(-1)
        for at, data in copies:
            sent[at : at + len(data)] = data

    def _launch(self, programs: int, sets: int, at: int, end: int, unit: int) -> None:
        """Send ``at`` bytes, answer, and have ``end`` bytes back."""
        block = next((block for block in (256, 128) if all(width % block == 0 for width in self._widths)), 0)
        variant = block or 256, block > 0, unit
        known = self._launches.get(variant)
        if known is not None:
            known[launching.PROGRAMS], known[launching.SENT_BYTES], known[launching.CAME_BYTES] = programs, at, end
            known[launching.ARGUMENTS + 4] = sets
            failed = launching.round_trip(known)
            if failed:
                raise RuntimeError(f"the CUDA driver's error {failed} while rows were answered")
            return
        self._data[:at].copy_(self._sent[:at], non_blocking=True)
        compiled = answer_joined[(programs,)](
            self._data[: 8 * _TABLE_WORDS].view(torch.int64), self._data, self._anchor, self._out, sets,
            MOST_ROWS, _SET, _ROW, unit, variant[1], _ROWS, variant[0], num_warps=1,
        )  # fmt: skip
        self._came[:end].copy_(self._out[:end], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
            if self._direct:
                self._launches[variant] = self._words_of(compiled, self._stream)

    def _words_of(self, compiled: Any, stream: torch.cuda.Stream) -> I64:
        """What `launching.round_trip` takes of a kernel that Triton compiled and loaded."""
        words = np.zeros(launching.ARGUMENTS + launching.MOST_ARGUMENTS, np.int64)
        words[launching.FUNCTION] = compiled.function
        words[launching.STREAM] = stream.cuda_stream
        words[launching.THREADS] = 32 * compiled.metadata.num_warps
        words[launching.SHARED] = compiled.metadata.shared
        words[launching.SENT], words[launching.DATA] = self._sent.data_ptr(), self._data.data_ptr()
        words[launching.CAME], words[launching.OUT] = self._came.data_ptr(), self._out.data_ptr()
        pointers = (self._data, self._data, self._anchor, self._out)
        words[launching.ARGUMENTS : launching.ARGUMENTS + 4] = [own.data_ptr() for own in pointers]
        return words

    def _make_room(self, sent: int, came: int) -> None:
        if len(self._sent) < sent:
            self._sent = _staged(2 * sent)
            self._data = torch.empty(2 * sent, dtype=torch.uint8, device=target())
            self._launches.clear()
        if len(self._came) < came:
            self._came = _staged(2 * came)
            self._out = torch.empty(2 * came, dtype=torch.uint8, device=target())
            self._launches.clear()


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
