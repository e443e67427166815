"""The row lane and its loop with a stream that echoes: order, stalls, faults, and what they keep."""

from __future__ import annotations

import contextlib
import gc
import socket
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.errors import WireError
from veil.kernels.reference import ReferenceKernels
from veil.network.busy_poll import NOTHING
from veil.network.frames import Frames
from veil.server.engine import Claim
from veil.server.lane import RowLane
from veil.server.row_loop import RowLoop
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal


class Twice:
    """An engine whose product of bytes is each of them twice."""

    model = SimpleNamespace(weights=[np.zeros((2, 1), np.int8)])
    kernels = ReferenceKernels()
    on_gpu = False

    def work(self, claim: Claim) -> int:
        return 1

    def product(self, claims: list[Claim], *, serial: bool) -> np.ndarray:
        if any(b"fail" in claim.rows.tobytes() for claim in claims):
            raise ZeroDivisionError("secret")
        return np.concatenate([np.repeat(claim.rows, 2, axis=1) for claim in claims])


class Echo:
    """A stream of rows that asks for what it got."""

    meanwhile = NOTHING

    def ask(self, data: bytes) -> tuple[Any, Claim, str]:
        if data == b"refuse":
            raise WireError("rows that do not fit")
        rows = np.frombuffer(data, np.uint8)[None]
        return Twice(), Claim(0, rows, [], 2), "somebody"

    def reply(self, claim: Claim, rows: bytes) -> bytes:
        return rows

    def end(self) -> None: ...


class Listening:
    """A lane, what it says of connections that ended, and references to those that showed a ticket."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.connections: list[weakref.ref[Any]] = []
        self.loop = RowLoop()
        address = ("127.0.0.1", 0)
        self.lane = RowLane(address, None, self.stream, self.loop, self.ended.append, message_bytes=1 << 23, most=8)
        self.loop.start()
        self.lane.start()

    def stream(self, session: str, ticket: str, cancel: Any) -> Any:
        self.connections.append(weakref.ref(cancel.__self__))
        return Echo()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.lane.port), 30)

    def greet(self, connection: socket.socket) -> Frames:
        frames = Frames(connection, 1 << 24)
        frames.send(seal(pb.LaneHello(protocol=methods.PROTOCOL, session="s", ticket="t")))
        assert unseal(frames.receive(), pb.EvaluateReply).error == ""
        return frames


@pytest.fixture
def listening() -> Iterator[Listening]:
    listening = Listening()
    yield listening
    listening.lane.stop(0.0)
    listening.loop.stop()
    listening.lane.close()


def test_a_connection_that_ended_is_not_kept(listening: Listening, until: Any) -> None:
    with listening.connect() as connection:
        frames = listening.greet(connection)
        frames.send(b"ro")
        assert frames.receive() == b"rroo"
        frames.close()
    until(lambda: listening.ended == ["ok"])
    until(lambda: gc.collect() >= 0 and listening.connections[0]() is None)


def test_messages_that_do_not_wait_for_their_replies_are_answered_in_order(listening: Listening) -> None:
    with listening.connect() as connection:
        frames = listening.greet(connection)
        for number in range(50):
            frames.send(bytes([number]))
        assert [frames.receive() for _ in range(50)] == [bytes([number, number]) for number in range(50)]
        frames.close()


def test_a_reply_that_nobody_reads_keeps_no_thread_and_comes_whole(listening: Listening, until: Any) -> None:
    large = bytes(range(256)) * (1 << 14)
    with listening.connect() as stalled, listening.connect() as other:
        slow = Frames(stalled, 1 << 24)
        listening.greet(stalled)
        slow.send(large)
        frames = listening.greet(other)
        for _ in range(20):
            frames.send(b"x")
            assert frames.receive() == b"xx"
        assert slow.receive() == np.repeat(np.frombuffer(large, np.uint8), 2).tobytes()
        slow.send(b"y")
        assert slow.receive() == b"yy"
        for one in (slow, frames):
            one.close()
    until(lambda: listening.ended == ["ok", "ok"])


def test_what_cannot_be_answered_ends_its_connection_alone(listening: Listening, until: Any) -> None:
    with listening.connect() as first, listening.connect() as second, listening.connect() as third:
        good = listening.greet(first)
        bad = listening.greet(second)
        bad.send(b"refuse")
        assert unseal(bad.receive(), pb.EvaluateReply).details == "rows that do not fit"
        assert bad.receive() is None
        failing = listening.greet(third)
        failing.send(b"fail")
        assert failing.receive() is None
        good.send(b"g")
        assert good.receive() == b"gg"
        for one in (good, bad, failing):
            one.close()
    until(lambda: sorted(listening.ended) == ["internal", "ok", "wire"])


def test_no_more_connections_than_allowed(listening: Listening, until: Any) -> None:
    with contextlib.ExitStack() as held:
        frames = [listening.greet(held.enter_context(listening.connect())) for _ in range(8)]
        with listening.connect() as one_more:
            assert one_more.recv(1) == b""
        assert listening.ended == ["quota"]
        for own in frames:
            own.close()
    until(lambda: listening.lane.count == 0)
