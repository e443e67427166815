"""gRPC channels without a network: each call is answered by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from veil.client.connection import Connection
from veil.network.timeouts import Timeouts
from veil.wire.failures import ERROR_KEY

Handler = Callable[[Any], Any]


class Failure(grpc.RpcError):  # type: ignore[misc]
    """A failed call, as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str = "", kind: str = "") -> None:
        self._said = code, details, ((ERROR_KEY, kind),) if kind else ()

    def code(self) -> grpc.StatusCode:
        return self._said[0]

    def details(self) -> str:
        return self._said[1]

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._said[2]


class Channel:
    """Answers each call by a handler, and notes its path, deadline and metadata."""

    def __init__(self, handler: Handler) -> None:
        self.handler, self.closed = handler, False
        self.calls: list[tuple[str, float | None, tuple[tuple[str, str], ...]]] = []

    def unary_unary(self, path: str) -> Callable[..., Any]:
        def call(data: Any, timeout: float | None = None, metadata: Any = ()) -> Any:
            if self.closed:
                raise ValueError("Cannot invoke RPC on closed channel!")
            self.calls.append((path, timeout, metadata))
            return self.handler(data)

        return call

    stream_unary = unary_stream = stream_stream = unary_unary

    def close(self) -> None:
        self.closed = True


class FakeAddress:
    """An address whose channels answer by ``handlers``, one for each channel; the last one serves all later ones too."""

    target, metadata = "127.0.0.1:9", (("authorization", "Bearer x"),)

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.channels: list[Channel] = []

    def channel(self, keepalive_s: float) -> Channel:
        self.channels.append(Channel(self.handlers[min(len(self.channels), len(self.handlers) - 1)]))
        return self.channels[-1]


def connection(*handlers: Handler) -> tuple[Connection, list[Channel]]:
    address: Any = FakeAddress(*handlers)
    return Connection(address, Timeouts(connect_s=7.0)), address.channels


def fails(error: Exception) -> Handler:
    def handler(_: Any) -> Any:
        raise error

    return handler
