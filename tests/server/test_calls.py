"""Open streams: bounded for each owner and each address, ended when silent; who has not spoken yet makes room."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from veil.errors import QuotaExceeded
from veil.server.calls import IDLE_S, OpenCalls
from veil.server.unproven import Unproven, address_of


class Context:
    """What gRPC gives of a call."""

    def __init__(self, peer: str = "ipv4:10.0.0.1:4000") -> None:
        self.peer, self.cancelled = (lambda: peer), False

    def cancel(self) -> None:
        self.cancelled = True


def opened(calls: OpenCalls, stack: ExitStack, owner: str, peer: str = "ipv4:10.0.0.1:4000") -> Any:
    context: Any = Context(peer)
    return stack.enter_context(calls.watch(context, owner))


def test_an_owner_has_a_number_of_streams_and_others_have_theirs() -> None:
    calls = OpenCalls(most=3)
    with ExitStack() as stack:
        for _ in range(3):
            opened(calls, stack, "one")
        with pytest.raises(QuotaExceeded, match="3 streams are open for you"):
            opened(calls, stack, "one")
        opened(calls, stack, "two")
        assert calls.count == 4
    assert calls.count == 0
    with ExitStack() as stack:
        opened(calls, stack, "one")


def test_one_address_leaves_a_third_of_the_unnamed_streams() -> None:
    calls = OpenCalls(most=6)
    with ExitStack() as stack:
        for port in range(4):
            opened(calls, stack, "", f"ipv4:10.0.0.1:{port}")
        with pytest.raises(QuotaExceeded):
            opened(calls, stack, "", "ipv4:10.0.0.1:9")
        for port in range(2):
            opened(calls, stack, "", f"ipv4:10.0.0.2:{port}")
        with pytest.raises(QuotaExceeded):
            opened(calls, stack, "", "ipv4:10.0.0.3:9")


def test_a_silent_stream_ends_and_one_that_was_heard_does_not() -> None:
    calls = OpenCalls(most=9)
    with ExitStack() as stack:
        silent, heard = opened(calls, stack, "one"), opened(calls, stack, "one")
        for call in (silent, heard):
            call.heard -= 100
        assert list(heard.each(iter([b"a", b"b"]))) == [b"a", b"b"]
        calls.cancel_silent(50)
        assert (silent.context.cancelled, heard.context.cancelled) == (True, False)


def test_a_stop_ends_streams_that_wait_for_a_message_alone() -> None:
    calls = OpenCalls(most=9)
    with ExitStack() as stack:
        waiting, answering = opened(calls, stack, "one"), opened(calls, stack, "one")
        for call in (waiting, answering):
            messages = call.each(iter([b"a", b"b"]))
            next(messages)
        waiting.waiting = True
        for call in (waiting, answering):
            call.heard -= 2 * IDLE_S
        calls.cancel_idle()
        assert (waiting.context.cancelled, answering.context.cancelled) == (True, False)


def test_a_first_message_is_waited_for_in_a_bounded_room() -> None:
    calls = OpenCalls(most=9, waiting=2)
    seen: list[int] = []

    def count() -> Any:
        seen.append(len(calls.unproven))
        yield b"first"

    context: Any = Context()
    assert calls.first(count(), context) == b"first" and seen == [1]
    assert len(calls.unproven) == 0
    assert calls.first(iter([]), context) == b""


def test_the_oldest_of_the_fullest_address_makes_room() -> None:
    ended: list[str] = []
    unproven: Unproven[str] = Unproven(3, ended.append)
    for one, address in (("a", "x"), ("b", "y"), ("c", "y"), ("d", "z")):
        unproven.add(one, address)
    assert ended == ["b"] and len(unproven) == 3
    unproven.remove("c")
    unproven.add("e", "x")
    assert ended == ["b"]
    unproven.cut(1000.0)
    assert ended == ["b"]
    unproven.cut(-1.0)
    assert sorted(ended) == ["a", "b", "d", "e"] and len(unproven) == 0


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:4000", "10.1.2.3"),
        ("10.1.2.3:4000", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:4000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:4000", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4000", "fe80::/64"),
    ],
)
def test_an_address_is_a_machine_or_its_network(peer: str, address: str) -> None:
    assert address_of(peer) == address
