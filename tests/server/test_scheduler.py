"""Who computes when: sessions share a pass, stay in order, and online work does not wait for preparation."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.errors import QuotaExceeded, ServerUnreachable, VeilError, WireError
from veil.kernels.interface import GroupResults, Rows, places_of
from veil.kernels.reference_kernels import ReferenceKernels
from veil.server.admission import Admitted
from veil.server.engine import Claim
from veil.server.row_loop import RowLoop
from veil.server.scheduler import PreparationWorker
from veil.server.store import Session
from veil.wire.messages import BatchUpload, Upload

ENGINE: Any = None  # what computes, which nothing here does


class FakeEngine:
    """Records passes; ``gate`` holds preparation back."""

    kernels = ReferenceKernels()
    model = SimpleNamespace(weights=[np.zeros((1, 2), np.int8)])
    on_gpu = False

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.answered: list[int] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
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

    joins_groups = False

    def results(self, claims: list[Claim], *, serial: bool) -> GroupResults:
        self.answered.append(len(claims))
        packed = np.concatenate([claim.rows for claim in claims]).reshape(-1)
        return GroupResults(packed, places_of([claim.rows.size for claim in claims]))


def kind_of(item: Admitted) -> int:
    """The number that `item` gave an upload: that of its first batch."""
    return item.upload.batches[0].number // 100


BAD = {13: WireError("bad"), 14: MemoryError(), 15: ZeroDivisionError("secret")}
"""What goes wrong with uploads of these kinds."""


def item(name: str, kind: int, batches: int = 1, segments: tuple[str, ...] = ("body",)) -> Admitted:
    uploads = tuple(BatchUpload(100 * kind + number, b"") for number in range(batches))
    return Admitted(Session(name, "", ENGINE, 0.0), Upload(uploads, segments), 0)


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


def test_online_work_does_not_wait_for_preparation(engine: Any) -> None:
    worker, loop = PreparationWorker(engine), RowLoop()
    loop.start()
    engine.gate.clear()
    slow = worker.submit(item("a", 0))
    assert engine.started.wait(30)
    claim = Claim(0, np.full((1, 2), 3, dtype=np.uint8), [Rows(np.zeros((1, 1), dtype=np.uint32), 0, 1)], 1)
    assert loop.answer(engine, claim, "b") == bytes([3, 3])
    assert not slow.done()
    engine.gate.set()
    slow.result(30)
    worker.stop()
    loop.stop()
