"""Whom the serving loop looks for, and whether anybody but one was heard from lately."""

from __future__ import annotations

import selectors
import socket
import threading
import time

from veil.network.busy_poll import NOTHING, BusyPoll
from veil.server.row_seat import Seat

_ALONE_S = 0.25


class SeatWatch:
    """Sees which connections have something to read, or take more of a reply. One thread at a time calls `select`."""

    def __init__(self) -> None:
        self.stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self._eager = BusyPoll(_file_of(self._selector))
        self._lock = threading.Lock()
        self._latest: object = None
        self._changed = self._heard = 0.0

    def close(self) -> None:
        """Look for nobody any more."""
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def look_for(self, seat: Seat, *, writes: bool = False) -> None:
        """See when a connection has something to read; with ``writes``, when it takes more, instead."""
        events = selectors.EVENT_WRITE if writes else selectors.EVENT_READ
        try:
            self._selector.modify(seat.frames.connection, events, seat)
        except KeyError:
            self._selector.register(seat.frames.connection, events, seat)

    def look_away(self, seat: Seat) -> None:
        """See it no more, until it is looked for again."""
        try:
            self._selector.unregister(seat.frames.connection)
        except (KeyError, ValueError):
            return

    def forget(self, seat: Seat) -> None:
        """A connection ends."""
        with self._lock:
            if self._latest is seat:
                self._latest = None
        self.look_away(seat)

    def look(self) -> None:
        """Wait for a message without sleeping, while that pays; work for the latest one's next answer is done meanwhile."""
        latest = self._latest
        self._eager.look(latest.meanwhile if isinstance(latest, Seat) else NOTHING)

    def came(self) -> None:
        """Have `look` know that a message was there."""
        self._eager.came()

    def select(self, wait_s: float) -> list[tuple[Seat, bool]]:
        """Connections that have something to read, or take more (true), as soon as there are some or `wake` is called."""
        found = []
        for key, events in self._selector.select(wait_s):
            if key.data is None:
                self._drain()
            else:
                found.append((key.data, events & selectors.EVENT_WRITE != 0))
        return found

    def wake(self) -> None:
        """Have `select` return; once ``stopping`` is set, in every thread that calls it."""
        try:
            self._wake_out.send(b"\0")
        except OSError:  # it is full, or the loop is over
            return

    def _drain(self) -> None:
        if self.stopping:
            return
        try:
            self._wake_in.recv(4096)
        except OSError:
            return

    @property
    def alone(self) -> bool:
        """Whether nobody but one had a message lately: one thread may look for the next, several would get in the way."""
        return self._heard - self._changed > _ALONE_S

    def heard_from(self, who: object) -> None:
        """Note who had a message now."""
        self._heard = time.monotonic()
        if self._latest is not who:
            self._latest, self._changed = who, self._heard


def _file_of(selector: selectors.BaseSelector) -> int | None:
    """The file that becomes readable when one of the selector's does; None where it has none (Windows)."""
    fileno = getattr(selector, "fileno", None)
    return None if fileno is None else int(fileno())
