"""Waiting without sleeping: it ends when bytes are there, when it does not pay, and when somebody needs the core."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from veil.network import busy_poll
from veil.network.busy_poll import BusyPoll
from veil.network.frames import Frames


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def looks(monkeypatch: pytest.MonkeyPatch, takes_ns: int = 0) -> list[int]:
    """Replace time: each look at the core takes ``takes_ns``. The clock's readings, one a look."""
    seen: list[int] = []
    clock = [0]

    def give() -> None:
        clock[0] += takes_ns
        seen.append(clock[0])

    monkeypatch.setattr(busy_poll, "_yield", give)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])
    return seen


def test_it_returns_at_once_for_bytes_that_are_there(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(monkeypatch, 1000)
    pair[1].send(b"x")
    BusyPoll(pair[0]).look()
    assert seen == []


def test_it_gives_up_in_time_and_looks_again_after_a_message_that_came_soon(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(monkeypatch, 100_000)
    wait = BusyPoll(pair[0])
    wait.look()
    assert seen[-1] == 2_100_000
    wait.came()
    count = len(seen)
    wait.look()
    assert len(seen) == count  # the last message was late: sleep for this one
    wait.came()
    wait.look()
    assert len(seen) > count  # and that one came soon


def test_it_rests_when_the_core_was_taken(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(monkeypatch, 2_100_000)
    wait = BusyPoll(pair[0])
    for _ in range(34):  # one sleeps because the last message was late, 32 because the core was taken
        wait.look()
        wait.came()
    assert len(seen) == 1
    wait.look()
    assert len(seen) == 2


def test_it_leaves_the_core_that_the_sender_needs(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[int] = []
    monkeypatch.setattr(busy_poll, "move_to_another_core", lambda: moves.append(1))
    clock = [0]

    def give() -> None:
        clock[0] += 100_000
        pair[1].send(b"x")

    monkeypatch.setattr(busy_poll, "_yield", give)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])
    wait = BusyPoll(pair[0])
    for _ in range(256):
        wait.look()
        wait.came()
        pair[0].recv(1)
    assert len(moves) == 1
    wait.look()
    assert len(moves) == 2


def test_frames_arrive_eagerly_as_they_do_otherwise(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = (Frames(one, 1 << 20) for one in pair)
    near.busy_poll = True
    messages = [b"", b"x", bytes(1 << 17)]

    def send() -> None:
        for message in messages:
            far.send(message)
        far.close()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    assert [near.receive() for _ in messages] == messages
    assert near.receive() is None
    sender.join(30)


def test_work_is_done_between_two_looks_and_not_when_bytes_are_there(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(monkeypatch, 1000)
    work = iter(range(40))

    def answer_at(count: int) -> None:
        seen.append(1)
        if len(seen) == count:
            pair[1].send(b"x")

    pair[1].send(b"x")
    wait = BusyPoll(pair[0])
    wait.look(work)
    assert next(work) == 0
    pair[0].recv(1)
    monkeypatch.setattr(busy_poll, "_yield", lambda: answer_at(3))
    wait.look(work)
    assert next(work) == 4
    pair[0].recv(1)
    monkeypatch.setattr(busy_poll, "_yield", lambda: answer_at(100))
    wait.look(work)
    assert list(work) == []


@pytest.mark.parametrize("step_ns", [100_000, 3_000_000])
def test_a_step_of_work_is_not_taken_for_another_s_use_of_the_core(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, step_ns: int
) -> None:
    """The thread neither moves after it, nor rests after one that took all the time for looking."""
    moves: list[int] = []
    clock = [0]
    monkeypatch.setattr(busy_poll, "move_to_another_core", lambda: moves.append(1))
    monkeypatch.setattr(busy_poll, "_yield", lambda: None)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])

    def work() -> Iterator[None]:
        clock[0] += step_ns
        if step_ns < 2_000_000:
            pair[1].send(b"x")
        yield

    wait, first, second = BusyPoll(pair[0]), work(), work()
    wait.look(first)
    wait.came()
    pair[1].send(b"x")
    wait.look()
    wait.came()  # soon, so that it looks for the next one
    pair[0].recv(2)
    wait.look(second)
    assert list(first) == list(second) == []
    assert moves == []
