"""The line is bounded and fair; a turn is handed on in order."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from veil.flag import Flag
from veil.gateway.failures import ApiError
from veil.gateway.fair_queue import FairQueue, Job, TurnLock
from waiting import until


def waits(event: threading.Event | Flag) -> None:
    event.wait()


def test_callers_take_turns_and_each_is_served_in_order() -> None:
    line, gate = FairQueue(1, 20), threading.Event()
    order: list[str] = []
    line.submit(Job("first", partial(waits, gate)))
    until(lambda: line.running == 1)
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        line.submit(Job(name[0], partial(order.append, name)))
    assert line.waiting == 7
    gate.set()
    until(lambda: len(order) == 7)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    line.close()


def test_one_caller_leaves_a_thread_to_the_others() -> None:
    line, gate, started = FairQueue(3, 20), threading.Event(), []

    def work(name: str) -> None:
        started.append(name)
        gate.wait()

    for index in range(5):
        line.submit(Job("greedy", partial(work, f"greedy {index}")))
    until(lambda: len(started) == 2)
    line.submit(Job("other", lambda: work("other")))
    until(lambda: len(started) == 3)
    assert started[2] == "other"
    assert line.running == 3 and line.waiting == 3
    gate.set()
    line.close()


def test_it_is_bounded_and_leaving_makes_room() -> None:
    line, gate = FairQueue(1, 2), threading.Event()
    line.submit(Job("a", partial(waits, gate)))
    until(lambda: line.running == 1)
    waiting = [Job("a", partial(waits, gate)), Job("b", partial(waits, gate))]
    for job in waiting:
        line.submit(job)
    with pytest.raises(ApiError) as caught:
        line.submit(Job("c", partial(waits, gate)))
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    line.cancel(waiting[0])
    assert waiting[0].cancelled.is_set() and line.waiting == 1
    line.submit(Job("c", partial(waits, gate)))
    gate.set()
    line.close()
    with pytest.raises(ApiError):
        line.submit(Job("late", partial(waits, gate)))


def test_closing_tells_what_runs() -> None:
    line = FairQueue(1, 2)
    job = Job("a", lambda: None)
    job.work = partial(waits, job.cancelled)
    line.submit(job)
    line.close(within_s=5)
    assert job.cancelled.is_set()


def test_a_turn_goes_to_who_waited_longest() -> None:
    lock, order = TurnLock(), []
    lock.acquire()
    threads = []
    for name in range(5):

        def work(name: int = name) -> None:
            lock.acquire()
            order.append(name)
            lock.release()

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        until(lambda: len(lock._queue) == len(threads))
    assert lock.wanted
    lock.release()
    for thread in threads:
        thread.join(30)
    assert order == list(range(5)) and not lock.wanted
