"""Streams that are open now, so that one whose client fell silent does not hold a thread for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from veil.errors import QuotaExceeded
from veil.server.unproven import FIRST_S, Unproven, address_of

IDLE_S = 2.0
"""Seconds without a message after which a stream is not under way when the server stops."""


class OpenCall:
    """One stream, whose it is and when it was last heard of."""

    def __init__(self, context: grpc.ServicerContext, owner: str) -> None:
        self.context = context
        self.owner = owner
        self.address = address_of(context.peer())
        self.heard = time.monotonic()
        self.waiting = False

    def each(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        """Pass messages of either direction on and note when they moved."""
        self.waiting = True
        for message in messages:
            self.waiting, self.heard = False, time.monotonic()
            yield message
            self.waiting, self.heard = True, time.monotonic()
        self.waiting = False


class OpenCalls:
    """All open streams, at most ``most`` of one owner, and calls before their first message.

    Callers without a token have no owner: together they have as many as one, two thirds of those from one address.
    ``waiting`` calls may wait for their first message. `cancel_silent` is called now and then by the server.
    """

    def __init__(self, most: int, waiting: int = 16) -> None:
        self._most = most
        self._most_of_address = max(1, 2 * most // 3)
        self.unproven: Unproven[grpc.ServicerContext] = Unproven(waiting, lambda context: context.cancel())
        self._lock = threading.Lock()
        self._open: set[OpenCall] = set()

    @property
    def count(self) -> int:
        """Open streams."""
        return len(self._open)

    def first(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """A call's first message, nothing if it has none; the call is cancelled if it does not come soon."""
        with self.unproven.holding(context, address_of(context.peer())):
            return next(messages, b"")

    @contextmanager
    def watch(self, context: grpc.ServicerContext, owner: str) -> Iterator[OpenCall]:
        """Count a stream as open while its handler runs; `QuotaExceeded` where its owner has enough of them."""
        call = OpenCall(context, owner)
        with self._lock:
            alike = [other for other in self._open if other.owner == owner]
            near = sum(1 for other in alike if not owner and other.address == call.address)
            if len(alike) >= self._most or near >= self._most_of_address:
                raise QuotaExceeded(f"{len(alike)} streams are open for you, the server allows no more; try again later")
            self._open.add(call)
        try:
            yield call
        finally:
            with self._lock:
                self._open.discard(call)

    def cancel_silent(self, silent_s: float) -> None:
        """End streams that were silent for longer; their clients come back on a new one when they need it."""
        self.unproven.cut(min(FIRST_S, silent_s))
        self._cancel(lambda call, silent: silent > silent_s)

    def cancel_idle(self) -> None:
        """End streams that are not under way, because the server stops."""
        self._cancel(lambda call, silent: call.waiting and silent > IDLE_S)

    def _cancel(self, which: Callable[[OpenCall, float], bool]) -> None:
        now = time.monotonic()
        with self._lock:
            late = [call for call in self._open if which(call, now - call.heard)]
        for call in late:
            call.context.cancel()
