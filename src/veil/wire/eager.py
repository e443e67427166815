"""Waiting without sleeping, while that pays: a core that sleeps takes longer to wake than a message takes to come."""

from __future__ import annotations

import os
import select
import socket
import time

_MOST_NS = 2_000_000
_TAKEN_NS = 1_000_000
_REST = 32
_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class EagerWait:
    """Looks for bytes on a socket again and again, for 2 ms at most, before a thread goes to sleep for them.

    Waking a core costs some 35 µs on a virtual machine, a message over the loopback interface 8. Each look offers the core
    to whoever wants it. Looking ends where it does not pay: after a message that was not there within the 2 ms, until one
    comes sooner, and for the next 32 messages after another thread took the core for a millisecond or more.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(connection, select.POLLIN)
        self._eager = True
        self._rest = 0
        self._began = 0

    def look(self) -> None:
        """Return when there are bytes, or when it is time to sleep for them."""
        self._began = before = time.perf_counter_ns()
        if self._poll is None or not self._eager:
            return
        if self._rest:
            self._rest -= 1
            return
        end = before + _MOST_NS
        while not self._poll.poll(0):
            _yield()
            now = time.perf_counter_ns()
            if now - before > _TAKEN_NS:
                self._rest = _REST
                return
            if now > end:
                return
            before = now

    def came(self) -> None:
        """Note that the bytes came."""
        self._eager = time.perf_counter_ns() - self._began < _MOST_NS
