"""Waiting without sleeping, while that pays: a core that sleeps takes longer to wake than a message takes to come."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Iterator

from veil.priority import move_to_another_core

NOTHING: Iterator[object] = iter(())
"""No work."""
_MOST_NS = 2_000_000
_SHARED_NS = 20_000
_REST = 32
_MOVES_AFTER = 256
_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class BusyPoll:
    """Looks for bytes on a socket again and again, for 2 ms at most, before a thread goes to sleep for them.

    Waking a core costs some 35 µs on a virtual machine, a message over the loopback interface 8. Each look offers the core
    to whoever wants it. If that was who had to send the message, the thread moves to another core, once in 256 messages at
    most: two processes that used to wait for each other are often left on one. Looking ends where it does not pay: after a
    message that was not there within the 2 ms, until one comes sooner, and for the next 32 messages after another took
    the core for so long. Only on Linux: other systems were not measured.
    """

    def __init__(self, connection: socket.socket | int | None) -> None:
        """Of a socket, or the file of a selector of many; with None there is nothing to look at."""
        self._poll = select.poll() if sys.platform == "linux" and connection is not None else None
        if self._poll is not None and connection is not None:
            self._poll.register(connection, select.POLLIN)
        self._polling = True
        self._rest = 0
        self._stays = 0
        self._began = 0

    def look(self, meanwhile: Iterator[object] = NOTHING) -> None:
        """Return when there are bytes, or when it is time to sleep for them.

        Between two looks one step of ``meanwhile`` is taken, which should be a few µs.
        """
        self._began = time.perf_counter_ns()
        if self._poll is None or not self._polling:
            return
        self._stays = max(0, self._stays - 1)
        if self._rest:
            self._rest -= 1
            return
        before, gone = self._began, 0
        end = before + _MOST_NS
        while not self._poll.poll(0):
            begun = time.perf_counter_ns()
            next(meanwhile, None)
            worked = time.perf_counter_ns() - begun
            _yield()
            now = time.perf_counter_ns()
            gone, before = now - before - worked, now
            if now > end:
                self._rest = _REST if gone > _MOST_NS else 0
                return
        if gone > _SHARED_NS and not self._stays:
            self._stays = _MOVES_AFTER
            move_to_another_core()

    def came(self) -> None:
        """Note that the bytes came."""
        self._polling = time.perf_counter_ns() - self._began < _MOST_NS
