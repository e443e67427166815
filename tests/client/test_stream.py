"""The row lane's client: a reply has to be whole within its time, however little of it comes however often."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from veil.client import stream as stream_module
from veil.client.connection import Address, Connection
from veil.client.stream import LaneStream
from veil.errors import ServerUnreachable
from veil.network.frames import Frames
from veil.network.timeouts import Timeouts
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal
from waiting import until

LIMIT = 1 << 20
TIMEOUTS = Timeouts(reply_s=1.0)
SOON_S = 20.0


def drip(connection: socket.socket) -> None:
    """Announce a long message and send a byte of it now and then, until the other side leaves."""
    connection.sendall((1 << 16).to_bytes(4, "little"))
    connection.settimeout(0.02)
    for _ in range(1 << 15):
        with contextlib.suppress(TimeoutError):
            try:
                connection.sendall(b"x")
                if not connection.recv(1):
                    return
            except ConnectionError:
                return


def hello_then_drip(connection: socket.socket) -> None:
    frames = Frames(connection, LIMIT)
    frames.receive()
    frames.send(seal(pb.EvaluateReply()))
    frames.receive()
    drip(connection)


@pytest.fixture
def lane_to() -> Iterator[Callable[..., Callable[[], LaneStream]]]:
    """Streams to a server that treats its one connection as it is told."""
    ended: list[Callable[[], None]] = []

    def serve(
        treat: Callable[[socket.socket], None], timeouts: Timeouts = TIMEOUTS, clock: Callable[[], float] = time.monotonic
    ) -> Callable[[], LaneStream]:
        listener = socket.create_server(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
        connection = Connection(Address(target=f"127.0.0.1:{port}"), timeouts)

        def run() -> None:
            near, _ = listener.accept()
            with near:
                treat(near)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ended.extend((connection.close, lambda: thread.join(10), listener.close))
        return lambda: LaneStream(connection, "session", (port, "ticket"), timeouts, LIMIT, clock)

    yield serve
    for end in ended:
        end()


def test_a_reply_that_drips_is_ended(lane_to: Callable[..., Callable[[], LaneStream]]) -> None:
    stream = lane_to(hello_then_drip)()
    start = time.monotonic()
    with pytest.raises(ServerUnreachable, match="no reply within"):
        stream.exchange([b"rows"], [1])
    assert time.monotonic() - start < SOON_S
    stream.close()


def test_a_hello_that_drips_is_ended(
    lane_to: Callable[..., Callable[[], LaneStream]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_REACH_S", 0.3)
    connect = lane_to(drip)
    start = time.monotonic()
    with pytest.raises(ServerUnreachable, match="no reply within"):
        connect()
    assert time.monotonic() - start < SOON_S


def test_a_stream_that_rests_longer_than_a_reply_may_take_goes_on(lane_to: Callable[..., Callable[[], LaneStream]]) -> None:
    def answer(connection: socket.socket) -> None:
        frames, sequence = Frames(connection, LIMIT), 0
        while frames.receive() is not None:
            frames.send(seal(pb.EvaluateReply(sequence=sequence, rows=b"r")))
            sequence += 1

    now, looks = [0.0], [0]

    def clock() -> float:
        looks[0] += 1
        return now[0]

    patient = Timeouts(connect_s=60.0, reply_s=60.0)
    stream = lane_to(answer, patient, clock)()
    for sequence in (1, 2):
        now[0] += 1000.0
        looks[0] = 0
        until(lambda: looks[0] > 1, what="two looks at the clock")
        assert stream.exchange([b"rows"], [sequence]) == [b"r"]
    stream.close()
