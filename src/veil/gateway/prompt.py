"""HTTP connections whose requests have to come in time: one that says nothing, or a byte now and then, is ended."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 20.0
"""Seconds from a connection, or from a request's first byte, until all of the request is there."""

MOST_WAITING = 256
"""Connections without a whole request; where there are more, the one that waited longest is ended."""


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for requests."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()
        waiting = [one for one in self.connections if isinstance(one, PromptProtocol) and one._late is not None]
        if len(waiting) > MOST_WAITING:
            min(waiting, key=_deadline).give_up()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def give_up(self) -> None:
        """End a connection whose request does not come."""
        self._stop_waiting()
        self.transport.abort()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(REQUEST_S, self.give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _deadline(one: PromptProtocol) -> float:
    return 0.0 if one._late is None else one._late.when()
