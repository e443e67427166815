"""The row lane and its loop with a stream that echoes: order, stalls, faults, and what they keep."""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.errors import CorruptMessage, WireError
from veil.kernels.interface import GroupResults, places_of
from veil.kernels.reference_kernels import ReferenceKernels
from veil.network.busy_poll import NOTHING
from veil.network.frames import Frames
from veil.network.ready_frames import ReadyFrames
from veil.server.arrivals import Arrivals
from veil.server.engine import Claim
from veil.server.lane import RowLane
from veil.server.row_io import SEQUENCE
from veil.server.row_loop import RowLoop
from veil.server.row_seat import Seat
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from waiting import until

needs_places = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each message is read by itself")


class Twice:
    """An engine whose product of bytes is each of them twice."""

    model = SimpleNamespace(weights=[np.zeros((2, 1), np.int8)])
    kernels = ReferenceKernels()
    on_gpu = False

    def work(self, claim: Claim) -> int:
        return 1

    joins_groups = False

    def results(self, claims: list[Claim], *, serial: bool) -> GroupResults:
        if any(b"fail" in claim.rows.tobytes() for claim in claims):
            raise ZeroDivisionError("secret")
        packed = np.concatenate([np.repeat(claim.rows, 2, axis=1) for claim in claims]).reshape(-1)
        return GroupResults(packed, places_of([2 * claim.rows.size for claim in claims]))


class Echo:
    """A stream of rows that asks for what it got; it has a usual message's rows doubled and sealed."""

    meanwhile = NOTHING
    name = "0123456789abcdef" * 2
    usual = apart = 0
    sequence = 0

    def ask_usual(self, own: list[int], rows: np.ndarray) -> tuple[Any, Claim, str] | None:
        self.sequence = own[SEQUENCE]
        if rows.tobytes() == b"leave it":
            return None
        if rows.tobytes() == b"refuse":
            raise WireError("rows that do not fit")
        Echo.usual += 1
        return Twice(), Claim(0, rows, [], 2), "somebody"

    def replied(self, claim: Claim, nbytes: int) -> None: ...

    def look_ahead(self, claim: Claim) -> None: ...

    def ask(self, data: bytes) -> tuple[Any, Claim, str]:
        if data == b"refuse":
            raise WireError("rows that do not fit")
        with contextlib.suppress(CorruptMessage):
            own = unseal(data, pb.EvaluateRequest)
            self.sequence, data = own.sequence, own.rows
        rows = np.frombuffer(data, np.uint8)[None]
        return Twice(), Claim(0, rows, [], 2), "somebody"

    def reply_parts(self, claim: Claim, parts: list[bytes]) -> list[bytes]:
        return [self.reply(claim, b"".join(parts))]

    def reply(self, claim: Claim, rows: bytes) -> bytes:
        Echo.apart += 1
        return seal(pb.EvaluateReply(sequence=self.sequence, rows=rows)) if self.sequence else rows

    def end(self) -> None: ...


class Listening:
    """A lane, what it says of connections that ended, and references to those that showed a ticket."""

    def __init__(self, together: bool) -> None:
        self.ended: list[str] = []
        self.connections: list[weakref.ref[Any]] = []
        self.loop = RowLoop(arrivals=Arrivals(8, 1 << 18) if together else None)
        address = ("127.0.0.1", 0)
        self.lane = RowLane(address, None, self.stream, self.loop.add, self.ended.append, message_bytes=1 << 23, most=8)
        self.loop.start()
        self.lane.start()

    def stream(self, session: str, ticket: str, cancel: Any) -> Any:
        cancel.__self__.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.connections.append(weakref.ref(cancel.__self__))
        return Echo()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.lane.port), 30)

    def greet(self, connection: socket.socket) -> Frames:
        frames = Frames(connection, 1 << 24)
        frames.send(seal(pb.LaneHello(protocol=methods.PROTOCOL, session="s", ticket="t")))
        assert unseal(frames.receive(), pb.EvaluateReply).error == ""
        return frames


@pytest.fixture(params=[False, True], ids=["each by itself", "together"])
def listening(request: pytest.FixtureRequest) -> Iterator[Listening]:
    listening = Listening(request.param)
    yield listening
    listening.lane.stop(0.0)
    listening.loop.stop()
    listening.lane.close()


def test_a_connection_that_ended_is_not_kept(listening: Listening) -> None:
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


def test_a_reply_that_nobody_reads_keeps_no_thread_and_comes_whole(listening: Listening) -> None:
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


def test_what_cannot_be_answered_ends_its_connection_alone(listening: Listening) -> None:
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


def test_no_more_connections_than_allowed(listening: Listening) -> None:
    with contextlib.ExitStack() as held:
        frames = [listening.greet(held.enter_context(listening.connect())) for _ in range(8)]
        with listening.connect() as one_more:
            assert one_more.recv(1) == b""
        assert listening.ended == ["quota"]
        for own in frames:
            own.close()
    until(lambda: listening.lane.count == 0)


class Sealed:
    """A client that sends usual messages and checks their replies."""

    def __init__(self, listening: Listening, connection: socket.socket) -> None:
        self.frames = listening.greet(connection)
        self.sent = self.heard = 0

    def send(self, rows: bytes, **other: Any) -> None:
        self.sent += 1
        own: dict[str, Any] = {"session": Echo.name, "sequence": self.sent, "spans": [0, 0, 1], "rows": rows}
        self.frames.send(seal(pb.EvaluateRequest(**own | other)))

    def hear(self, rows: bytes) -> None:
        self.heard += 1
        reply = unseal(self.frames.receive(), pb.EvaluateReply)
        assert (reply.sequence, reply.rows, reply.error) == (
            self.heard,
            np.repeat(np.frombuffer(rows, np.uint8), 2).tobytes(),
            "",
        )


@pytest.fixture
def together() -> Iterator[Listening]:
    Echo.usual = Echo.apart = 0
    listening = Listening(True)
    yield listening
    listening.lane.stop(0.0)
    listening.loop.stop()
    listening.lane.close()


@needs_places
def test_usual_messages_of_many_are_each_answered_with_their_own_rows(together: Listening) -> None:
    with contextlib.ExitStack() as held:
        clients = [Sealed(together, held.enter_context(together.connect())) for _ in range(6)]
        for turn in range(30):
            for number, client in enumerate(clients):
                client.send(bytes([turn, number]))
            for number, client in enumerate(clients):
                client.hear(bytes([turn, number]))
        assert Echo.usual == 180, "some were read by themselves"
        for client in clients:
            client.frames.close()


@needs_places
def test_usual_messages_that_do_not_wait_keep_their_order(together: Listening) -> None:
    with together.connect() as connection:
        client = Sealed(together, connection)
        for number in range(50):
            client.send(bytes([number]))
        for number in range(50):
            client.hear(bytes([number]))
        client.frames.close()


@needs_places
def test_a_usual_reply_that_nobody_reads_comes_whole_and_others_go_on(together: Listening) -> None:
    large = bytes(range(256)) * 900
    with together.connect() as stalled, together.connect() as other:
        slow, quick = Sealed(together, stalled), Sealed(together, other)
        slow.send(large)
        for _ in range(20):
            quick.send(b"x")
            quick.hear(b"x")
        slow.hear(large)
        assert Echo.apart == 1, "the rest of a reply was not kept"
        slow.send(b"y")
        slow.hear(b"y")
        for one in (slow, quick):
            one.frames.close()
    until(lambda: together.ended == ["ok", "ok"])


@needs_places
def test_a_usual_message_at_fault_ends_its_connection_alone(together: Listening) -> None:
    with contextlib.ExitStack() as held:
        good, bad, failing, left = (Sealed(together, held.enter_context(together.connect())) for _ in range(4))
        bad.send(b"refuse")
        assert unseal(bad.frames.receive(), pb.EvaluateReply).details == "rows that do not fit"
        assert bad.frames.receive() is None
        failing.send(b"fail")
        assert failing.frames.receive() is None
        left.send(b"leave it")
        left.hear(b"leave it")
        good.send(b"g")
        good.hear(b"g")
        for one in (good, bad, failing, left):
            one.frames.close()
    until(lambda: sorted(together.ended) == ["internal", "ok", "ok", "wire"])


def ended(listening: Listening, count: int) -> bool:
    return len(listening.ended) == count


@needs_places
def test_places_of_connections_that_ended_are_used_again(together: Listening) -> None:
    for number in range(1, 21):
        with together.connect() as connection:
            client = Sealed(together, connection)
            client.send(bytes([number]))
            client.hear(bytes([number]))
            client.frames.close()
        until(partial(ended, together, number))
    assert Echo.usual == 20


@needs_places
def test_a_connection_that_is_there_twice_is_read_once() -> None:
    """Its lock is held while it is read: to wait for it twice would be for ever."""
    loop = RowLoop(threads=1, arrivals=Arrivals(2, 1 << 12))
    mine, its = socket.socketpair()
    with mine, its:
        seat = Seat(ReadyFrames(its, 1 << 12), Echo(), lambda *_: None)  # type: ignore[arg-type]
        loop.add(seat)
        mine.sendall(usual_frame(b"x"))
        loop.seats.unread = [seat, seat]
        came: list[Any] = []
        threading.Thread(target=lambda: came.append(loop.seats.read(0.0)), daemon=True).start()
        until(lambda: came)
        assert [asked.seat for asked in came[0]] == [seat]
        loop.stop()


def usual_frame(rows: bytes) -> bytes:
    data = seal(pb.EvaluateRequest(session=Echo.name, sequence=1, spans=[0, 0, 1], rows=rows))
    return len(data).to_bytes(4, "little") + data
