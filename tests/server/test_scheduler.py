"""Who computes when: sessions share a pass, stay in order, and online work does not wait for preparation."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.errors import QuotaExceeded, ServerUnreachable, VeilError, WireError
from veil.kernels.interface import Rows
from veil.kernels.reference import ReferenceKernels
from veil.server.admission import Admitted
from veil.server.engine import Claim
from veil.server.scheduler import OnlineTurns, PreparationWorker
from veil.server.store import Session
from veil.wire.messages import BatchUpload, Upload


class FakeEngine:
    """Records passes; ``gate`` holds preparation back, ``online`` products."""

    kernels = ReferenceKernels()

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.answered: list[int] = []
        self.started = threading.Event()
        self.gate, self.online = threading.Event(), threading.Event()
        self.gate.set()
        self.online.set()
        self.failure: Exception | None = None
        self.given_back: list[str] = []

    def make(self, batch: list[Admitted]) -> list[Exception | None]:
        self.batches.append([(item.session.name, kind_of(item)) for item in batch])
        self.started.set()
        assert self.gate.wait(30)
        if self.failure:
            raise self.failure
        return [BAD.get(kind_of(item)) for item in batch]

    def give_back(self, item: Admitted) -> None:
        self.given_back.append(item.session.name)

    def work(self, claim: Claim) -> int:
        return len(claim.shares)

    def answer(self, claims: list[Claim], *, serial: bool) -> list[Any]:
        self.answered.append(len(claims))
        assert self.online.wait(30)
        return [claim.rows for claim in claims]


def kind_of(item: Admitted) -> int:
    """The number that `item` gave an upload: that of its first batch."""
    return item.upload.batches[0].number // 100


BAD = {13: WireError("bad"), 14: MemoryError(), 15: ZeroDivisionError("secret")}
"""What goes wrong with uploads of these kinds."""


def item(name: str, kind: int, batches: int = 1, segments: tuple[str, ...] = ("body",)) -> Admitted:
    uploads = tuple(BatchUpload(100 * kind + number, b"") for number in range(batches))
    return Admitted(Session(name, "", None, 0.0), Upload(uploads, segments), 0)


@pytest.fixture
def engine() -> Any:
    return FakeEngine()


def test_waiting_sessions_share_a_pass_and_stay_in_order(engine: Any) -> None:
    worker = PreparationWorker(engine, most_batches=4)
    engine.gate.clear()
    first = worker.submit(item("x", 0))
    assert engine.started.wait(30)
    waiting = [
        item("a", 0, 2),
        item("b", 0, 1, ("body", "head")),
        item("b", 1, 1),  # must not overtake b's first
        item("c", 0, 2),
        item("d", 0, 2),
    ]
    futures = [worker.submit(one) for one in waiting]
    assert worker.waiting == 8
    engine.gate.set()
    for future in [first, *futures]:
        future.result(30)
    worker.stop()
    assert engine.batches == [[("x", 0)], [("a", 0), ("c", 0)], [("b", 0)], [("b", 1), ("d", 0)]]


def test_one_bad_upload_fails_alone(engine: Any) -> None:
    worker = PreparationWorker(engine, most_batches=4)
    engine.gate.clear()
    worker.submit(item("x", 0))
    assert engine.started.wait(30)
    good = worker.submit(item("a", 0))
    bad = [worker.submit(item(str(epoch), epoch)) for epoch in BAD]
    engine.gate.set()
    good.result(30)
    for future, kind, message in zip(
        bad,
        (WireError, QuotaExceeded, VeilError),
        ("^bad$", "out of memory", "^the server failed .* its log says why$"),
        strict=True,
    ):
        with pytest.raises(kind, match=message):
            future.result(30)
    worker.stop()
    assert len(engine.batches) == 2


def test_a_failure_is_reported_and_the_worker_goes_on(engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    worker = PreparationWorker(engine)
    engine.failure = RuntimeError("kernel")
    with pytest.raises(VeilError, match="its log says why"):
        worker.submit(item("a", 0)).result(30)
    engine.failure = MemoryError()
    with pytest.raises(VeilError, match="out of memory"):
        worker.submit(item("a", 0)).result(30)
    engine.failure = None
    worker.submit(item("a", 0)).result(30)
    worker.stop()
    assert "preparing failed" in caplog.text
    assert engine.given_back == []  # `make` did it


def test_what_comes_after_the_stop_is_refused_and_given_back(engine: Any) -> None:
    worker = PreparationWorker(engine)
    worker.stop()
    with pytest.raises(ServerUnreachable, match="shutting down"):
        worker.submit(item("a", 0)).result(30)
    assert engine.given_back == ["a"]


def test_a_pass_that_gets_no_thread_is_given_back_and_the_worker_goes_on(engine: Any, no_thread: Any) -> None:
    worker = PreparationWorker(engine)
    with no_thread("veil-work"), pytest.raises(ServerUnreachable, match="short of threads"):
        worker.submit(item("a", 0)).result(30)
    assert (engine.given_back, engine.batches) == (["a"], [])
    worker.submit(item("b", 0)).result(30)
    worker.stop()
    assert engine.batches == [[("b", 0)]]


def test_stopping_finishes_what_waits(engine: Any) -> None:
    worker = PreparationWorker(engine, most_batches=1)
    futures = [worker.submit(item(str(number), 0)) for number in range(5)]
    worker.stop()
    assert all(future.done() for future in futures)


def claim(group: int, row: int, slots: int = 1) -> Claim:
    return Claim(group, np.full((1, 2), row, dtype=np.uint8), [Rows(np.zeros((1, 1), dtype=np.uint32), 0, 1)], slots)


def test_rows_of_one_group_are_answered_together_and_each_gets_its_own(engine: Any, until: Any) -> None:
    turns = OnlineTurns(1)
    replies: dict[int, bytes] = {}

    def ask(row: int) -> None:
        replies[row] = turns.answer(engine, claim(row % 2, row))

    engine.online.clear()
    threads = [threading.Thread(target=ask, args=(row,), daemon=True) for row in range(9)]
    threads[0].start()
    until(lambda: engine.answered == [1])
    for thread in threads[1:]:
        thread.start()
    until(lambda: len(turns._waiting) == 8)
    engine.online.set()
    for thread in threads:
        thread.join(30)
    assert replies == {row: bytes([row, row]) for row in range(9)}
    assert engine.answered == [1, 4, 4]


def test_rows_that_ask_for_other_outputs_are_not_answered_together() -> None:
    assert claim(0, 1, 5).asks_like(claim(0, 2, 5))
    assert not claim(0, 1, 5).asks_like(claim(0, 1, 4))
    assert not claim(0, 1, 5).asks_like(claim(1, 1, 5))


class CountingEngine:
    """Counts products that run at once and notes which were serial; each takes until ``gate`` opens."""

    kernels = ReferenceKernels()

    def __init__(self, work: int) -> None:
        self._work = work
        self.running: list[bool] = []
        self.gate = threading.Event()

    def work(self, claim: Claim) -> int:
        return self._work

    def answer(self, claims: list[Claim], *, serial: bool) -> list[Any]:
        self.running.append(serial)
        assert self.gate.wait(30)
        return [claim.rows for claim in claims]


def test_as_many_products_as_cores_run_at_once_and_the_rest_is_batched(until: Any) -> None:
    turns, engine = OnlineTurns(2), CountingEngine(1 << 30)
    replies: dict[int, bytes] = {}

    def ask(row: int) -> None:
        replies[row] = turns.answer(engine, claim(0, row))  # type: ignore[arg-type]

    threads = [threading.Thread(target=ask, args=(row,), daemon=True) for row in range(6)]
    for running, thread in enumerate(threads[:2], 1):
        thread.start()
        until(lambda running=running: len(engine.running) == running)
    for thread in threads[2:]:
        thread.start()
    until(lambda: len(turns._waiting) == 4)
    assert engine.running == [False, True]  # the second one shares the cores
    engine.gate.set()
    for thread in threads:
        thread.join(30)
    assert replies == {row: bytes([row, row]) for row in range(6)}
    assert len(engine.running) == 3


@pytest.mark.parametrize(("work", "serial"), [(1 << 10, True), (1 << 30, False)])
def test_only_a_large_product_gets_several_threads(work: int, serial: bool) -> None:
    engine = CountingEngine(work)
    engine.gate.set()
    OnlineTurns(2).answer(engine, claim(0, 1))  # type: ignore[arg-type]
    assert engine.running == [serial]


def test_a_failing_product_fails_those_who_asked() -> None:
    turns = OnlineTurns()
    broken = SimpleNamespace(work=lambda claim: 1, answer=lambda claims, serial: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        turns.answer(broken, claim(0, 1))  # type: ignore[arg-type]


def test_online_work_does_not_wait_for_preparation(engine: Any) -> None:
    worker, turns = PreparationWorker(engine), OnlineTurns()
    engine.gate.clear()
    slow = worker.submit(item("a", 0))
    assert engine.started.wait(30)
    assert turns.answer(engine, claim(0, 3)) == bytes([3, 3])
    assert not slow.done()
    engine.gate.set()
    slow.result(30)
    worker.stop()
