"""The row lane: the same answers as gRPC, the same checks, and gRPC where it cannot be reached."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.proxy import Cut, Direction, Proxy
from veil.client.session import OfflineRows
from veil.client.stream import GrpcStream, LaneStream
from veil.errors import ServerUnreachable, VeilError
from veil.network.frames import Frames
from veil.network.timeouts import Timeouts
from veil.network.tokens import Tokens, digest_of
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal, unseal
from waiting import until

TIMEOUTS = Timeouts(connect_s=3.0, reply_s=0.5, prepare_s=3.0, retry_s=6.0, pause_s=0.01, keepalive_s=5.0)
TOKENS = 3


def stream_of(remote: Any) -> Any:
    return remote.sides.remote.transport.stream


@pytest.mark.parametrize(("port", "kind"), [(0, LaneStream), (None, GrpcStream)])
def test_both_ways_give_the_same_tokens(
    port: int | None, kind: type, llama: Any, serve: Any, generated: Any, expected: list[int]
) -> None:
    with serve(llama, rows_port=port) as server:
        remote = llama.connect(server.port)
        assert generated(remote) == expected
        assert isinstance(stream_of(remote), kind)
        remote.close()


def test_a_lane_that_cannot_be_reached_is_not_missed(
    llama: Any, serve: Any, generated: Any, expected: list[int], refusing_port: int
) -> None:
    with serve(llama) as server:
        server.service.rows_port = refusing_port
        remote = llama.connect(server.port)
        assert generated(remote) == expected
        assert isinstance(stream_of(remote), GrpcStream)
        assert remote.stats.reconnects == 0
        remote.close()


def test_the_lane_is_protected_as_the_rest_is(
    llama: Any, serve: Any, generated: Any, expected: list[int], certificate: tuple[Path, Path]
) -> None:
    with serve(llama, tls=certificate, tokens=Tokens([digest_of("right")])) as server:
        remote = llama.connect(f"localhost:{server.port}", token="right", tls=certificate[0])
        assert generated(remote) == expected
        assert isinstance(stream_of(remote), LaneStream)
        with pytest.raises((OSError, VeilError)):
            say_hello(server.service.rows_port, *lane_of(remote)[1:])
        remote.close()


def lane_of(remote: Any) -> tuple[int, str, str]:
    """Port of the lane, session and its ticket."""
    transport = remote.sides.remote.transport
    assert transport.lane is not None
    return transport.lane[0], remote.sides.remote.pool.session, transport.lane[1]


def say_hello(port: int, session: str, ticket: str, protocol: int = methods.PROTOCOL) -> pb.EvaluateReply:
    with socket.create_connection(("127.0.0.1", port), 3) as connection:
        frames = Frames(connection, 1 << 16)
        frames.send(seal(pb.LaneHello(protocol=protocol, session=session, ticket=ticket)))
        reply = unseal(frames.receive(), pb.EvaluateReply)
        frames.close()
        return reply


def test_a_hello_is_checked(llama: Any, serve: Any) -> None:
    with serve(llama, tokens=Tokens([digest_of("one"), digest_of("two")])) as server:
        one, two = llama.connect(server.port, token="one"), llama.connect(server.port, token="two")
        (port, session, ticket), (_, foreign, other) = lane_of(one), lane_of(two)
        assert say_hello(port, session, ticket).error == ""
        for wrong in (other, "", ticket[:-1], ticket + "0", "one", session):
            assert say_hello(port, session, wrong).error == "unknown-session"
        assert say_hello(port, foreign, ticket).error == "unknown-session"
        assert say_hello(port, "0" * 32, ticket).error == "unknown-session"
        assert say_hello(port, session, ticket, protocol=9).error == "incompatible"
        one.close()
        assert say_hello(port, session, ticket).error == "unknown-session"
        two.close()


def test_the_token_does_not_go_to_the_lane(llama: Any, serve: Any, generated: Any, proxy_to: Callable[..., Proxy]) -> None:
    with serve(llama, tokens=Tokens([digest_of("sesame-opens")])) as server:
        proxy = proxy_to(server.service.rows_port, plain=True)
        server.service.rows_port = proxy.port
        sent: list[bytes] = []

        def keep(way: Any, at: int, frame: bytes) -> bytes:
            sent.append(frame)
            return frame

        proxy.harm = keep
        remote = llama.connect(server.port, token="sesame-opens")
        generated(remote)
        assert len(sent) > 20
        assert not any(b"sesame" in frame for frame in sent)
        remote.close()


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x10\x00\x00\x00short", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_bytes_that_are_no_hello_end_the_connection(
    data: bytes, llama: Any, serve: Any, generated: Any, expected: list[int]
) -> None:
    with serve(llama) as server:
        with socket.create_connection(("127.0.0.1", server.service.rows_port), 3) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        remote = llama.connect(server.port)
        assert generated(remote) == expected
        remote.close()


def test_a_silent_connection_is_ended(llama: Any, serve: Any) -> None:
    with serve(llama, silent_s=0.2, sweep_s=0.05) as server:
        remote = llama.connect(server.port)
        port, session, ticket = lane_of(remote)
        with socket.create_connection(("127.0.0.1", port), 3) as connection:
            frames = Frames(connection, 1 << 16)
            frames.send(seal(pb.LaneHello(protocol=methods.PROTOCOL, session=session, ticket=ticket)))
            assert unseal(frames.receive(), pb.EvaluateReply).error == ""
            assert frames.receive() is None
            frames.close()
        remote.close()


def test_a_hello_that_trickles_is_ended(llama: Any, serve: Any) -> None:
    """A byte now and then does not keep a connection that has shown no ticket."""
    with (
        serve(llama, silent_s=0.3, sweep_s=0.05) as server,
        socket.create_connection(("127.0.0.1", server.service.rows_port), 3) as connection,
    ):
        connection.sendall((4096).to_bytes(4, "little"))
        connection.settimeout(0.02)

        def over() -> bool:
            try:
                connection.sendall(b"x")
                return connection.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        until(over)


def test_a_flood_of_connections_stops_at_the_limit_and_others_go_on(
    llama: Any, serve: Any, generated: Any, expected: list[int]
) -> None:
    with serve(llama) as server:
        lane = server.lane
        flood = [socket.create_connection(("127.0.0.1", lane.port), 3) for _ in range(lane.most)]
        until(lambda: lane.count == lane.most // 2)
        remote = llama.connect(server.port)
        assert generated(remote) == expected
        assert isinstance(stream_of(remote), LaneStream), "the oldest that says nothing makes room"
        for connection in flood:
            connection.close()
        remote.close()


def test_a_stop_ends_idle_streams_soon(llama: Any, serve: Any, generated: Any) -> None:
    timeouts = Timeouts(connect_s=0.5, reply_s=0.5, prepare_s=1.0, retry_s=0.3, pause_s=0.02)
    for port in (0, None):
        with serve(llama, rows_port=port) as server:
            remote = llama.connect(server.port, timeouts=timeouts, offline_rows=OfflineRows(tokens=1, prompt_rows=0))
            generated(remote)
            start = time.monotonic()
            server.stop(120.0)
            assert time.monotonic() - start < 60
            remote.close()


def test_a_lane_that_breaks_every_time_is_left_for_grpc(
    llama: Any, serve: Any, generated: Any, expected: list[int], proxy_to: Callable[..., Proxy]
) -> None:
    with serve(llama) as server:
        proxy = proxy_to(server.service.rows_port, plain=True)
        server.service.rows_port = proxy.port
        remote = llama.connect(server.port, timeouts=TIMEOUTS)
        hellos = [0]

        def harm(way: Direction, at: int, frame: bytes) -> bytes:
            """Let hellos through and nothing else."""
            if len(frame) > 200:
                raise Cut
            hellos[0] += way == "up"
            return frame

        proxy.harm = harm
        assert generated(remote) == expected
        assert isinstance(stream_of(remote), GrpcStream)
        assert hellos[0] >= 1
        remote.close()


# Faults --------------------------------------------------------------------------------------------------------------------


def tokens_of(hybrid: Any) -> list[int]:
    import torch

    prompt = torch.arange(3, 9).unsqueeze(0)
    output = hybrid.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=2, max_new_tokens=TOKENS
    )
    return [int(token) for token in output[0, 6:]]


@pytest.fixture
def damaged(llama: Any, serve: Any, proxy_to: Callable[..., Proxy]) -> Iterator[tuple[Any, Proxy]]:
    """A server whose lane is reached through a proxy."""
    with serve(llama) as server:
        proxy = proxy_to(server.service.rows_port, plain=True)
        server.service.rows_port = proxy.port
        yield server, proxy


def generate(llama: Any, server: Any, proxy: Proxy) -> tuple[list[int], Any]:
    remote = llama.connect(server.port, timeouts=TIMEOUTS, offline_rows=OfflineRows(tokens=8, prompt_rows=0))
    seen: set[tuple[int, int, int]] = set()
    transport = remote.sides.remote.transport
    original = transport.evaluate

    def evaluate(session: str, group: int, spans: Any, data: Any, slots: int) -> Any:
        rows = {(group, span.batch, row) for span in spans for row in range(span.first, span.first + span.count)}
        assert not seen & rows, "a row twice"
        seen.update(rows)
        return original(session, group, spans, data, slots)

    transport.evaluate = evaluate
    try:
        return tokens_of(remote), remote.stats.copy()
    finally:
        proxy.reset()
        remote.close()


def cut(frame: bytes) -> bytes:
    raise Cut


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "twice": lambda frame: frame + frame,
    "half": lambda frame: frame[: 4 + (len(frame) - 4) // 2],
    "swallowed": lambda frame: b"",
    "a bit of the payload": lambda frame: frame[:20] + bytes([frame[20] ^ 1]) + frame[21:] if len(frame) > 21 else frame,
    "a bit of the check": lambda frame: frame[:-1] + bytes([frame[-1] ^ 128]),
    "a longer length": lambda frame: bytes([frame[0] ^ 64]) + frame[1:],
    "a huge length": lambda frame: frame[:3] + b"\x7f" + frame[4:],
}


@pytest.mark.parametrize("name", [*HARMS, "late"])
def test_one_message_is_harmed(name: str, llama: Any, damaged: tuple[Any, Proxy]) -> None:
    """Each message in turn for a cut, two of them otherwise: the answer is always the undisturbed one."""
    server, proxy = damaged
    undisturbed = tokens_of(llama.local)
    proxy.reset()
    assert generate(llama, server, proxy)[0] == undisturbed
    count = 9 * TOKENS
    directions: tuple[Direction, Direction] = ("up", "down")
    for direction in directions:
        for index in range(0, count) if name == "cut" else (0, count // 2):

            def harm(way: Direction, at: int, frame: bytes, direction: str = direction, index: int = index) -> bytes:
                if (way, at) != (direction, index):
                    return frame
                if name == "late":  # it comes when the client has given it up
                    proxy.until_another_connection()
                    return frame
                return HARMS[name](frame)

            proxy.harm = harm
            assert generate(llama, server, proxy)[0] == undisturbed, f"{direction} {index}"


def test_a_half_open_lane_is_noticed(llama: Any, damaged: tuple[Any, Proxy]) -> None:
    server, proxy = damaged
    undisturbed = tokens_of(llama.local)

    def harm(way: Direction, at: int, frame: bytes) -> bytes:
        if (way, at) == ("up", 10):
            proxy.half_open()
            proxy.until_another_connection()
        return frame

    proxy.harm = harm
    tokens, stats = generate(llama, server, proxy)
    assert tokens == undisturbed
    assert stats.reconnects >= 1


def test_a_server_that_is_gone_is_an_error(llama: Any, serve: Any) -> None:
    timeouts = Timeouts(connect_s=0.5, reply_s=0.5, prepare_s=1.0, retry_s=0.3, pause_s=0.02)
    with serve(llama) as server:
        remote = llama.connect(server.port, timeouts=timeouts)
        remote.sides.remote.reserve(full=12)
        tokens_of(remote)
    with pytest.raises(ServerUnreachable, match="is 'veil serve' running"):
        tokens_of(remote)
    remote.close()
