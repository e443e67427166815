"""Many who say nothing: calls without a message, connections without a hello. Others go on."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from veil.client.connection import Address, Connection
from veil.errors import QuotaExceeded, ServerUnreachable
from veil.network.timeouts import Timeouts
from veil.network.tokens import Tokens, digest_of
from veil.server import calls, lane
from veil.server.calls import OpenCalls
from veil.server.service import Service
from veil.server.unproven import Unproven, address_of
from veil.wire import failures, methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal
from waiting import until

SOURCE = Path(__file__).parents[2] / "src"
BRIEF = Timeouts(connect_s=2.0, retry_s=1.0, reply_s=2.0)
CALLS = 300


@contextmanager
def header_only(port: int, count: int = CALLS, path: str = f"/{methods.SERVICE}/Evaluate") -> Iterator[list[Any]]:
    """So many calls that sent their headers and wait, on some connections."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(-(-count // 50))]
    started = [channels[index // 50].stream_stream(path)(nothing()) for index in range(count)]
    try:
        yield started
    finally:
        over.set()
        for channel in channels:
            channel.close()


def describe(port: int, timeouts: Timeouts = BRIEF, **options: Any) -> None:
    talk = Connection(Address(target=f"127.0.0.1:{port}", **options), timeouts)
    try:
        talk.describe()
    finally:
        talk.close()


# Calls without a message ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Evaluate", "Describe", "Prepare"])
def test_calls_without_a_message_do_not_stop_others(
    method: str, llama: Any, serve: Any, generated: Any, expected: list[int]
) -> None:
    with serve(llama) as server:
        unproven = server.service.calls.unproven
        with header_only(server.port, path=f"/{methods.SERVICE}/{method}"):
            until(lambda: len(unproven) == unproven.most)
            remote = llama.connect(server.port)
            assert generated(remote) == expected
            remote.close()
        until(lambda: len(unproven) == 0)


def test_without_the_rule_they_do(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(llama) as server:
        waiting: list[int] = []

        def first(self: Any, messages: Iterator[bytes], context: Any) -> bytes:
            waiting.append(1)
            return next(messages, b"")

        monkeypatch.setattr(OpenCalls, "first", first)
        with header_only(server.port):
            until(lambda: len(waiting) >= server.threads)
            with pytest.raises(ServerUnreachable):
                describe(server.port)


def test_a_first_message_has_to_come_soon(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_S", 0.2)
    with serve(llama, sweep_s=0.05) as server, header_only(server.port, 3) as started:
        for call in started:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("method", ["Describe", "Open", "Prepare", "Evaluate", "Close", "Fetch"])
def test_who_calls_is_asked_before_a_message_is_read(
    method: str, llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    first = OpenCalls.first
    monkeypatch.setattr(OpenCalls, "first", lambda self, m, c: read.append(b"") or first(self, m, c))  # type: ignore[func-returns-value]
    with serve(llama, tokens=Tokens([digest_of("right")])) as server:
        with header_only(server.port, 20, f"/{methods.SERVICE}/{method}") as started:
            for call in started:
                with pytest.raises(grpc.RpcError) as caught:
                    next(call)
                assert dict(caught.value.trailing_metadata())[failures.ERROR_KEY] == "access"
        assert not read
        describe(server.port, token="right")
        assert len(read) == 1


def test_the_health_service_is_no_other_door(llama: Any, serve: Any) -> None:
    """``Watch`` stays open by its nature, and is not there; ``Check`` is bounded like every call."""
    health = "/grpc.health.v1.Health/"
    with serve(llama) as server:
        with header_only(server.port, 5, f"{health}Watch") as started:
            for call in started:
                with pytest.raises(grpc.RpcError) as caught:
                    next(call)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        unproven = server.service.calls.unproven
        with header_only(server.port, path=f"{health}Check"):
            until(lambda: len(unproven) == unproven.most)
            describe(server.port)
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                assert channel.unary_unary(f"{health}Check")(b"", timeout=5) == b"\x08\x01", "SERVING"


def test_streams_of_one_address_leave_room_for_others() -> None:
    class Context:
        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

        def cancel(self) -> None: ...

    kept: list[Any] = []

    def most(calls: OpenCalls, peers: Iterator[str], owner: str) -> int:
        opened = 0
        with pytest.raises(QuotaExceeded):
            for peer in peers:
                kept.append(calls.watch(Context(peer), owner))
                kept[-1].__enter__()
                opened += 1
        return opened

    crowd = OpenCalls(12)
    assert most(crowd, (f"ipv4:192.0.2.1:{port}" for port in range(99)), "") == 8
    assert most(crowd, (f"ipv4:192.0.2.{host}:1" for host in range(2, 99)), "") == 4
    assert most(crowd, (f"ipv4:192.0.2.1:{port}" for port in range(99)), "a token") == 12


def test_an_error_that_is_none_of_veils_stays_here(
    llama: Any, serve: Any, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, request: Any, owner: str) -> Any:
        raise KeyError("what only the log may say")

    monkeypatch.setattr(Service, "close", fail)
    with serve(llama) as server, raw(server.port) as client, pytest.raises(grpc.RpcError) as caught:
        client.unary("Close", seal(pb.CloseRequest(session="x")))
    assert caught.value.details() == "the server failed; its log says why"


# Who makes room -------------------------------------------------------------------------------------------------------


def test_the_oldest_of_the_largest_crowd_makes_room() -> None:
    ended: list[str] = []
    unproven: Unproven[str] = Unproven(4, ended.append)
    for one, address in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c"), ("b2", "b"), ("b3", "b"), ("a3", "a")):
        unproven.add(one, address)
    assert ended == ["a1", "b1", "a2"]
    unproven.remove("c1")
    unproven.add("d1", "d")
    assert len(ended) == 3 and len(unproven) == 4
    unproven.cut(-1.0)
    assert sorted(ended[3:]) == ["a3", "b2", "b3", "d1"] and len(unproven) == 0


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:80", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:80", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:80", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:80", "192.0.2.1"),
        ("fe80::1%eth0:80", "fe80::/64"),
        ("unix:", "unix"),
    ],
)
def test_where_a_peer_comes_from(peer: str, address: str) -> None:
    assert address_of(peer) == address


# Connections without a hello ------------------------------------------------------------------------------------------


def test_silent_lane_connections_make_room(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from veil.client.stream import LaneStream

    def stream_of(remote: Any) -> type:
        remote.model.generate(__import__("torch").tensor([[5, 6, 7]]), max_new_tokens=2)
        return type(remote.sides.remote.transport.stream)

    with serve(llama) as server:
        most = server.lane.most
        flood = [socket.create_connection(("127.0.0.1", server.lane.port), 5) for _ in range(2 * most)]
        until(lambda: server.lane.count == most // 2)
        remote = llama.connect(server.port)
        assert stream_of(remote) is LaneStream
        remote.close()
        for one in flood:
            one.close()

    class Never(Unproven[Any]):
        def add(self, one: Any, address: str) -> None: ...

    monkeypatch.setattr(lane, "Unproven", Never)
    with serve(llama) as server:
        flood = [socket.create_connection(("127.0.0.1", server.lane.port), 5) for _ in range(most + 8)]
        until(lambda: server.lane.count == most)
        remote = llama.connect(server.port)
        assert stream_of(remote) is not LaneStream, "without the rule the lane is taken"
        remote.close()
        for one in flood:
            one.close()


PROGRAM = """
import sys
import veil.process
if sys.argv.pop(1) == "without":
    veil.process.raise_file_limit = lambda: 1 << 16
from veil.cli import main
main()
"""


@contextmanager
def few_files(half: Path, rule: str) -> Iterator[int]:
    """A server process that was started with 1,024 files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", PROGRAM, rule, "serve", str(half), "--port", "0", "--metrics-port", "0"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "listening on" in line)
            reader = threading.Thread(target=process.stderr.read, daemon=True)
            reader.start()
            yield int(line.split(",")[0].rpartition(":")[2])
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
            reader.join(10)
        finally:
            process.kill()


@pytest.mark.parametrize("rule", ["with", "without"])
def test_silent_connections_do_not_use_up_the_files(rule: str, llama: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if min(hard, 1 << 20) < 4096 or soft < 2048:
        pytest.skip("this machine does not let a process open enough files")
    with few_files(llama.path / "server", rule) as port:
        flood: list[socket.socket] = []
        try:
            flood += [socket.create_connection(("127.0.0.1", port), 5) for _ in range(1100)]
            if rule == "with":
                describe(port, Timeouts(connect_s=10.0))
            else:
                with pytest.raises(ServerUnreachable):
                    describe(port, Timeouts(connect_s=3.0))
        finally:
            for one in flood:
                one.close()


def test_a_silent_connection_is_ended_by_grpc_too(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.server.listen.FIRST_S", 0.3)
    with serve(llama) as server, socket.create_connection(("127.0.0.1", server.port), 10) as silent:
        while silent.recv(1 << 12):  # its settings, then the end
            pass


def test_silence_does_not_keep_the_metrics(llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch, own_port: int) -> None:
    monkeypatch.setattr("veil.server.metrics.FIRST_S", 0.2)
    with serve(llama, metrics_port=own_port), socket.create_connection(("127.0.0.1", own_port), 10) as silent:
        assert silent.recv(1) == b""
        with urllib.request.urlopen(f"http://127.0.0.1:{own_port}/metrics", timeout=10) as answer:
            assert b"veil_sessions" in answer.read()


def test_the_unit_raises_the_limit_too() -> None:
    unit = (Path(__file__).parents[2] / "deploy" / "veil.service").read_text().splitlines()
    assert "LimitNOFILE=65536" in unit
