"""Who computes when: one worker prepares masks of all sessions, online products take turns and never wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from veil.errors import QuotaExceeded, ServerUnreachable, VeilError
from veil.priority import in_thread_of_its_own
from veil.server.engine import Admitted, Claim, Engine

_LOG = logging.getLogger("veil.server")

Observer = Callable[[str, int, float], None]
"""(``prepare`` or ``evaluate``, masks or rows, seconds)"""


def _unobserved(kind: str, count: int, seconds: float) -> None: ...


@dataclass(eq=False)
class _Job:
    item: Admitted
    engine: Engine
    done: Future[None] = field(default_factory=Future)


class PreparationWorker:
    """One thread that prepares waiting uploads, several sessions' at once, ``batch_masks`` or one upload a pass.

    On Linux each pass, and with it the kernels' threads that it starts, yields the cores to online work.
    """

    def __init__(self, batch_masks: int = 16, observer: Observer = _unobserved) -> None:
        self._batch_masks = batch_masks
        self._observe = observer
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="veil-prepare", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Masks that wait."""
        with self._changed:
            return sum(len(job.item.upload.masks) for job in self._jobs)

    def submit(self, engine: Engine, item: Admitted) -> Future[None]:
        """Queue an admitted upload; the future is done when its masks are usable."""
        job = _Job(item, engine)
        with self._changed:
            if self._stopping:
                job.done.set_exception(ServerUnreachable("the server is shutting down"))
            else:
                self._jobs.append(job)
                self._changed.notify()
        return job.done

    def stop(self) -> None:
        """Finish what waits, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if not self._jobs:
                    return
                batch = self._take()
            in_thread_of_its_own(partial(self._make, batch), background=True)

    def _take(self) -> list[_Job]:
        """The oldest job and those that can share its pass; a session's jobs stay in order."""
        first = self._jobs[0]
        batch: list[_Job] = []
        passed: set[str] = set()
        masks = 0
        for job in list(self._jobs):
            count, session = len(job.item.upload.masks), job.item.session.name
            fits = job.engine is first.engine and job.item.upload.segments == first.item.upload.segments
            if fits and session not in passed and (not batch or masks + count <= self._batch_masks):
                batch.append(job)
                masks += count
                self._jobs.remove(job)
            else:
                passed.add(session)
        return batch

    def _make(self, batch: list[_Job]) -> None:
        start = time.perf_counter()
        errors: list[VeilError | None]
        try:
            errors = batch[0].engine.make([job.item for job in batch])
        except MemoryError:
            errors = [QuotaExceeded("the server is out of memory for masks; try again later")] * len(batch)
        except Exception:
            _LOG.exception("preparing failed")
            errors = [VeilError("the server failed while it prepared masks; its log says why")] * len(batch)
        masks = sum(len(job.item.upload.masks) for job in batch)
        self._observe("prepare", masks, time.perf_counter() - start)
        for job, error in zip(batch, errors, strict=True):
            if error is None:
                job.done.set_result(None)
            else:
                job.done.set_exception(error)


@dataclass(eq=False)
class _Asked:
    engine: Engine
    claim: Claim
    reply: bytes | None = None
    failed: Exception | None = None


class OnlineTurns:
    """One online product at a time; whoever has the turn answers everybody who waits with rows of the same group.

    The work is done by the callers' own threads, so that a lone client pays for no hand-over.
    """

    def __init__(self, batch_rows: int = 64, observer: Observer = _unobserved) -> None:
        self._batch_rows = batch_rows
        self._observe = observer
        self._turn = threading.Lock()
        self._waiting: list[_Asked] = []

    def answer(self, engine: Engine, claim: Claim) -> bytes:
        """The packed results for a claim."""
        asked = _Asked(engine, claim)
        self._waiting.append(asked)
        with self._turn:
            if asked.reply is None and asked.failed is None:
                self._serve(asked)
        if asked.failed is not None:
            raise asked.failed
        assert asked.reply is not None
        return asked.reply

    def _serve(self, first: _Asked) -> None:
        """Answer ``first`` and those who fit with it; the turn is held, so nobody else takes from the queue."""
        batch, rows = [first], len(first.claim.shares)
        self._waiting.remove(first)
        for other in list(self._waiting):
            same = other.engine is first.engine and other.claim.group == first.claim.group
            if same and rows + len(other.claim.shares) <= self._batch_rows:
                self._waiting.remove(other)
                batch.append(other)
                rows += len(other.claim.shares)
        start = time.perf_counter()
        try:
            replies = first.engine.answer([asked.claim for asked in batch])
        except Exception as error:
            for asked in batch:
                asked.failed = error
            return
        self._observe("evaluate", rows, time.perf_counter() - start)
        for asked, reply in zip(batch, replies, strict=True):
            asked.reply = reply
