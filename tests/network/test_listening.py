"""Addresses that are listened on, and whether somebody listens at one."""

from __future__ import annotations

import socket

import pytest

from veil.errors import ServerUnreachable
from veil.network.listening import is_loopback, listening
from veil.network.reach import connecting_s


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "", "::ffff:10.0.0.1"])
def test_others_too(host: str) -> None:
    assert not is_loopback(host)


def test_a_port_is_had_once_and_reached() -> None:
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert connecting_s(f"127.0.0.1:{port}") >= 0
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{port} .*choose another --rows-port or --host"):
            listening("127.0.0.1", port, "--rows-port")


def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match=rf"{target} \(connection refused\); is 'veil serve' running there"):
            connecting_s(target)


@pytest.mark.parametrize("target", ["127.0.0.1:70000", "a" * 70 + ".example:1"])
def test_an_address_that_cannot_be_is_unreachable(target: str) -> None:
    with pytest.raises(ServerUnreachable, match="no usable answer from"):
        connecting_s(target, 5)


def test_a_host_that_is_not_this_machine_is_one_error() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192.0.2.1:0 .*--host"):
        listening("192.0.2.1", 0)  # an address for examples
