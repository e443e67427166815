"""The row lane by itself, with a stream that echoes: what it does when threads are short, and what it keeps."""

from __future__ import annotations

import gc
import logging
import socket
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from veil.network.busy_poll import NOTHING
from veil.network.frames import Frames
from veil.server.lane import RowLane
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal


class Echo:
    """A stream of rows that answers with what it got."""

    meanwhile = NOTHING

    def answer(self, data: bytes) -> bytes:
        return data

    def end(self) -> None: ...


class Listening:
    """A lane, what it says of connections that ended, and references to those that showed a ticket."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.connections: list[weakref.ref[Any]] = []
        self.lane = RowLane(("127.0.0.1", 0), None, self.stream, self.ended.append, message_bytes=1 << 16, most=4)
        self.lane.start()

    def stream(self, session: str, ticket: str, cancel: Any) -> Any:
        self.connections.append(weakref.ref(cancel.__self__))
        return Echo()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.lane.port), 30)

    def greet(self, connection: socket.socket) -> Frames:
        frames = Frames(connection, 1 << 16)
        frames.send(seal(pb.LaneHello(protocol=methods.PROTOCOL, session="s", ticket="t")))
        assert unseal(frames.receive(), pb.EvaluateReply).error == ""
        return frames


@pytest.fixture
def listening() -> Iterator[Listening]:
    listening = Listening()
    yield listening
    listening.lane.stop(0.0)


def test_a_connection_that_gets_no_thread_is_closed_and_the_lane_goes_on(
    listening: Listening, until: Any, no_thread: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with no_thread("veil-row"), caplog.at_level(logging.ERROR, "veil.server"):
        for _ in range(5):
            with listening.connect() as connection:
                assert connection.recv(1) == b""
        until(lambda: listening.ended == ["internal"] * 5)
    assert listening.lane.count == 0
    assert "can't start new thread" in caplog.text
    with listening.connect() as connection:
        frames = listening.greet(connection)
        frames.send(b"rows")
        assert frames.receive() == b"rows"
        frames.close()


def test_a_connection_that_ended_is_not_kept(listening: Listening, until: Any) -> None:
    with listening.connect() as connection:
        frames = listening.greet(connection)
        frames.send(b"rows")
        assert frames.receive() == b"rows"
        frames.close()
    until(lambda: listening.ended == ["ok"])
    until(lambda: gc.collect() >= 0 and listening.connections[0]() is None)
