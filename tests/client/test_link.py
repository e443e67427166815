"""The way to a server: round trips are TCP's where nothing stands between, and a call's where something near connects."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from client.channels import Channel, Failure, FakeAddress, fails
from veil.client import link
from veil.client.reach import answers
from veil.errors import ServerUnreachable
from veil.network.link import Link
from veil.network.timeouts import Timeouts
from veil.wire import methods
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal


class Way:
    """A server whose calls take their time by this clock, which nothing else moves."""

    def __init__(self, call_s: float, bytes_per_s: float) -> None:
        self.now, self.call_s, self.bytes_per_s = 0.0, call_s, bytes_per_s
        self.reply = pb.DescribeReply(protocol=methods.PROTOCOL, version="x" * 10_000)

    def clock(self) -> float:
        return self.now

    def describe(self, _: bytes) -> bytes:
        self.now += self.call_s + self.reply.ByteSize() / self.bytes_per_s
        return seal(self.reply)

    def close(self, _: bytes) -> bytes:
        self.now += self.call_s
        raise Failure(grpc.StatusCode.NOT_FOUND, "no such session", "unknown-session")

    def channel(self, keepalive_s: float) -> Channel:
        channel = Channel(self.describe)
        calls: dict[str, Callable[[bytes], bytes]] = {"Describe": self.describe, "Close": self.close}
        made = channel.unary_unary

        def by_name(path: str) -> Callable[..., Any]:
            channel.handler = calls[path.rpartition("/")[2]]
            return made(path)

        channel.unary_unary = by_name  # type: ignore[method-assign]
        return channel


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield int(listener.getsockname()[1])


def measured(way: Way, target: str) -> Link:
    address: Any = FakeAddress()
    address.target, address.channel = target, way.channel
    return link.measure_link(address, Timeouts(), way.clock)


def test_bandwidth_is_what_a_long_reply_takes_longer(port: int) -> None:
    found = measured(Way(call_s=0.02, bytes_per_s=1e6), f"127.0.0.1:{port}")
    assert found.bytes_per_s == pytest.approx(1e6, rel=1e-6)
    assert found.transfer_s(500_000) == pytest.approx(0.5, rel=1e-6)


def test_something_near_that_connects_does_not_hide_the_way_behind_it(port: int) -> None:
    """The clock stands still while TCP connects: a call that takes much longer went further."""
    assert measured(Way(2 * link.OF_GRPC_S, 1e6), f"127.0.0.1:{port}").rtt_s == pytest.approx(2 * link.OF_GRPC_S)
    assert measured(Way(link.OF_GRPC_S / 2, 1e6), f"127.0.0.1:{port}").rtt_s == 0.0


def test_what_cannot_be_told_apart_is_a_fast_link(port: int) -> None:
    assert measured(Way(0.0001, 1e12), f"127.0.0.1:{port}").bytes_per_s == 1.25e9
    assert measured(Way(0.0001, float("inf")), f"127.0.0.1:{port}").bytes_per_s == 1.25e9


def test_a_port_that_tcp_cannot_reach_leaves_the_calls_time() -> None:
    with socket.socket() as bound:  # bound but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        found = measured(Way(0.0005, 1e6), f"127.0.0.1:{bound.getsockname()[1]}")
    assert found.rtt_s == pytest.approx(0.0005)


def test_a_server_that_is_not_there_is_said() -> None:
    address: Any = FakeAddress(fails(Failure(grpc.StatusCode.UNAVAILABLE, "down")))
    with pytest.raises(ServerUnreachable, match="down"):
        link.measure_link(address, Timeouts())
    assert address.channels[0].closed


@pytest.mark.parametrize(
    ("code", "there"),
    [
        (None, True),
        (grpc.StatusCode.UNIMPLEMENTED, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (grpc.StatusCode.UNAVAILABLE, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, False),
    ],
)
def test_any_answer_shows_that_a_server_is_there(code: grpc.StatusCode | None, there: bool) -> None:
    address: Any = FakeAddress(fails(Failure(code)) if code is not None else lambda _: b"")
    assert answers(address) is there
    assert address.channels[0].closed
    assert address.channels[0].calls[0][:2] == ("/grpc.health.v1.Health/Check", 2.0)
