"""The batches of all sessions as a table of numbers, which kernels that claim rows read without the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from veil.kernels.cpu.kept import jitted
from veil.kernels.interface import Array
from veil.server.spending import SpentRows

MOST_SEGMENTS = 4

NUMBER, NEXT, ROWS, COUNTS, DIGESTS, SHARES = range(6)
"""Columns of a batch: its number, the session's next one (or -1), its rows, where its `SpentRows` are; then, for each
segment of its model, where its shares are (0: not prepared) and the words of a row of them."""

COLUMNS = SHARES + 2 * MOST_SEGMENTS

_FIRST_ROOM = 64


_PLACES = 1 << 20
"""Sessions at once, at most."""


@jitted(nogil=True)
def find_batch(batches, heads, names, session, number):  # type: ignore[no-untyped-def]
    """The place of a session's batch in the table, or -1."""
    own = session % _PLACES
    place = heads[own] if names[own] == session else -1
    while place >= 0 and batches[place, NUMBER] != number:
        place = batches[place, NEXT]
    return place


class BatchTable:
    """Batches [n, COLUMNS] int64, when they expire [n], each session's first and name [sessions]; a store's lock is held.

    A session's name here is a number that no other ever has: a connection that names one that closed finds nothing.

    ``address`` is where a device has an array. What `drop` and `close` forget is kept until `forget`, since rows that were
    claimed before may be multiplied at that moment.
    """

    def __init__(self, address: Callable[[Array], int]) -> None:
        self._address = address
        self.batches = np.zeros((0, COLUMNS), np.int64)
        self.expires = np.zeros(0, np.float64)
        self.heads = np.zeros(0, np.int64)
        self.names = np.zeros(0, np.int64)
        self._opened = 0
        self._free: list[int] = []
        self._free_heads: list[int] = []
        self._retired: list[Mapping[str, Array]] = []

    def open(self) -> int:
        """The name of a new session."""
        if not self._free_heads:
            count = len(self.heads)
            more = max(count, _FIRST_ROOM)
            self.heads = np.concatenate([self.heads, np.full(more, -1, np.int64)])
            self.names = np.concatenate([self.names, np.full(more, -1, np.int64)])
            self._free_heads = list(range(count, count + more))
        self._opened += 1
        place = self._free_heads.pop()
        self.names[place] = place + _PLACES * self._opened
        return int(self.names[place])

    def close(self, session: int) -> None:
        """Forget a session, whose batches are dropped."""
        self.names[session % _PLACES] = -1
        self._free_heads.append(session % _PLACES)

    def put(
        self,
        session: int,
        number: int,
        shares: Mapping[str, Array],
        spent: SpentRows,
        segments: Mapping[str, int],
        expires: float,
    ) -> int:
        """Note a session's batch; its place in the table. ``segments`` are those of its model, in their order."""
        if not self._free:
            count = len(self.batches)
            more = max(count, _FIRST_ROOM)
            self.batches = np.concatenate([self.batches, np.zeros((more, COLUMNS), np.int64)])
            self.expires = np.concatenate([self.expires, np.zeros(more)])
            self._free = list(range(count, count + more))
        place = self._free.pop()
        own = self.batches[place]
        own[:] = 0
        own[NUMBER], own[NEXT] = number, self.heads[session % _PLACES]
        own[ROWS] = spent.digests.shape[1]
        own[COUNTS], own[DIGESTS] = spent.counts.ctypes.data, spent.digests.ctypes.data
        for column, name in enumerate(list(segments)[:MOST_SEGMENTS]):
            if name in shares:
                own[SHARES + 2 * column] = self._address(shares[name])
                own[SHARES + 2 * column + 1] = shares[name].shape[1]
        self.expires[place] = expires
        self.heads[session % _PLACES] = place
        return place

    def drop(self, session: int, place: int, shares: Mapping[str, Array]) -> None:
        """Forget a batch."""
        before, at = -1, int(self.heads[session % _PLACES])
        while at != place:
            before, at = at, int(self.batches[at, NEXT])
        after = self.batches[place, NEXT]
        if before < 0:
            self.heads[session % _PLACES] = after
        else:
            self.batches[before, NEXT] = after
        self._free.append(place)
        self._retired.append(shares)

    def forget(self) -> None:
        """Let go of what was dropped: nothing is multiplied that was claimed before."""
        self._retired = []
