"""Room for the messages of many connections, which are received and answered together; see `veil.server.row_io`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import threading
from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.siphash import KEY
from veil.kernels.cpu.threads import all_threads
from veil.network.frames import LENGTH_BYTES
from veil.server import row_io
from veil.server.row_io import (
    COLUMNS,
    COUNT,
    FILE,
    HAVE,
    NAME,
    NAME_BYTES,
    RECEIVED,
    RESULT_BYTES,
    RESULTS,
    ROWS_AT,
    ROWS_BYTES,
    SENT,
    SEQUENCE,
    SESSION,
    STATE,
    WHOLE,
)

U8 = NDArray[np.uint8]

_LEAST, _MOST = 32 << 10, 256 << 10
_SOME = 4
_THREADS = 8
_FILES = 1 << 20


def room_for(row_bytes: int) -> int:
    """Bytes for a connection's messages where a row takes so many at most: some rows, and what stands beside them."""
    return min(max(4 * row_bytes + 256, _LEAST), _MOST)


def _most_files() -> int:
    """Files that this process may have open at most."""
    if sys.platform == "win32":
        return 0
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return min(_FILES, hard) if hard > 0 else _FILES


class Arrivals:
    """Places for so many connections, ``room`` bytes each. Whoever uses a place holds the lock of its connection.

    With ``together`` several threads receive and send where there are some messages: on one machine sending a reply is most
    of what it costs, and a GPU's server has cores to spare.
    Memory is taken as messages come. Where the system is not known, or a session has a name of another form, there is no
    place, and each message is read by itself.
    """

    def __init__(self, places: int, room: int, *, together: bool = False) -> None:
        count = places if row_io.AVAILABLE else 0
        self.arena: U8 = np.empty((count, room), np.uint8)
        self.table = np.zeros((count, COLUMNS), np.int64)
        self.hands = np.zeros(count, np.int64)
        """Whose each connection is, see `veil.server.front_io`: the serving loop's, if there are no fronts."""

        self.files = np.zeros(_most_files() if count else 0, np.int64)
        """The place of each open file and one, 0 for those that have none."""

        self._single = np.zeros(1, np.int64)
        self._free = list(range(count))
        self._together = together
        self._lock = threading.Lock()

    def compile(self) -> None:
        """Have the kernels ready before a message comes."""
        self.compile_receiving()
        self.compile_answering()

    def compile_receiving(self) -> None:
        """Have the kernel ready that receives."""
        if len(self.arena):
            nobody = np.empty(0, np.int64)
            row_io.receive(self.arena, self.table, nobody, KEY)
            if self._together:
                row_io.receive_together(self.arena, self.table, nobody, KEY)

    def compile_answering(self) -> None:
        """Have the kernel ready that replies."""
        if len(self.arena):
            packed, turns = np.empty(0, np.uint8), np.empty((0, 4), np.int64)
            row_io.reply(packed, self.table, turns)
            if self._together:
                row_io.reply_together(packed, self.table, turns)

    def limit_threads(self) -> None:
        """Have the calling thread's kernels wake few others."""
        if self._together:
            numba.set_num_threads(min(_THREADS, all_threads()))

    def add(self, file: int, name: str, session: int = -1) -> int | None:
        """A place for a connection of a session; None if there is none.

        ``session`` is the session's number in a `veil.server.batch_table`, for what is answered in rounds.
        """
        known = name.encode()
        with self._lock:
            if len(known) != NAME_BYTES or not self._free:
                return None
            place = self._free.pop()
        own = self.table[place]
        own[FILE] = file
        own[SESSION] = session
        own[NAME:] = np.frombuffer(known, np.int64)
        if file < len(self.files):
            self.files[file] = place + 1
        return place

    def free(self, place: int) -> None:
        """Give a place back; nobody uses it any more."""
        file = self.table[place, FILE]
        if file < len(self.files) and self.files[file] == place + 1:  # not another connection's by now
            self.files[file] = 0
        self.table[place] = 0
        with self._lock:
            self._free.append(place)

    def end(self, place: int) -> None:
        """Have a connection end, by whoever receives from it next."""
        copy = socket.socket(fileno=os.dup(int(self.table[place, FILE])))
        with contextlib.suppress(OSError), copy:
            copy.shutdown(socket.SHUT_RDWR)

    def receive(self, places: Sequence[int]) -> list[list[int]]:
        """Receive what is there, by one thread at a time; each connection's columns of `row_io`."""
        if len(places) == 1:
            self._single[0] = places[0]
            row_io.receive(self.arena, self.table, self._single, KEY)
            return [self.table[places[0]].tolist()]
        which = np.array(places, np.int64)
        receive = row_io.receive_together if self._together and len(places) >= _SOME else row_io.receive
        receive(self.arena, self.table, which, KEY)
        found: list[list[int]] = self.table[which, :NAME].tolist()
        return found

    def unsent(self, place: int) -> tuple[int, bytes, int]:
        """Of a reply that a front sent a part of: the message's sequence, the packed results, and the bytes that went."""
        own = self.table[place].tolist()
        return own[SEQUENCE], ctypes.string_at(own[RESULTS], own[RESULT_BYTES]), -1 - own[SENT]

    def known(self, place: int) -> list[int]:
        """A connection's columns of `row_io`."""
        own: list[int] = self.table[place, :NAME].tolist()
        return own

    def rows(self, place: int, own: Sequence[int]) -> U8:
        """The rows [count, bytes] of a usual message, until the next one is received; one row where they are not alike."""
        at, size, count = own[ROWS_AT], own[ROWS_BYTES], own[COUNT]
        rows = self.arena[place : place + 1, at : at + size]
        return rows if count == 1 or size % count else rows.reshape(count, size // count)

    def take(self, place: int, own: Sequence[int]) -> memoryview:
        """Everything that is there, to be read by itself; it is forgotten here."""
        there = LENGTH_BYTES + own[RECEIVED] if own[STATE] == WHOLE else own[HAVE]
        self.table[place, HAVE] = 0
        return self.arena[place, :there].data

    def reply(self, packed: U8, turns: Sequence[tuple[int, int, int]]) -> list[int]:
        """Answer the usual messages of some (place, first byte, end) with their parts of the results [bytes].

        The bytes that went, for each; ``-1 - n`` where only n of them did.
        """
        table = np.array([(*turn, 0) for turn in turns], np.int64)
        fit = packed.flags.c_contiguous and packed.flags.writeable
        reply = row_io.reply_together if self._together and len(turns) >= _SOME else row_io.reply
        reply(packed if fit else packed.copy(), self.table, table)
        sent: list[int] = table[:, 3].tolist()
        return sent
