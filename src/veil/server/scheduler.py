"""One worker prepares batches of all sessions; online products never wait for it."""

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
from veil.server.admission import Admission, Admitted

_LOG = logging.getLogger("veil.server")

Observer = Callable[[str, int, float], None]
"""(``prepare``, batches, seconds)"""


def _unobserved(kind: str, count: int, seconds: float) -> None: ...


@dataclass(eq=False)
class _Job:
    item: Admitted
    done: Future[None] = field(default_factory=Future)


class PreparationWorker:
    """One thread that prepares waiting uploads, several sessions' at once, ``most_batches`` or one upload a pass.

    On Linux each pass, and with it the kernels' threads that it starts, yields the cores to online work.
    """

    def __init__(self, admission: Admission, most_batches: int = 2, observer: Observer = _unobserved) -> None:
        self._admission = admission
        self._most_batches = most_batches
        self._observe = observer
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="veil-prepare", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Batches that wait."""
        with self._changed:
            return sum(len(job.item.upload.batches) for job in self._jobs)

    def submit(self, item: Admitted) -> Future[None]:
        """Queue an admitted upload; the future is done when its rows are usable."""
        job = _Job(item)
        with self._changed:
            if self._stopping:
                self._admission.give_back(item)
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
            try:
                in_thread_of_its_own(partial(self._make, batch), background=True)
            except Exception as error:  # no thread could be started; `_make` itself raises none
                _LOG.error("preparing failed: %s", error)
                for job in batch:
                    self._admission.give_back(job.item)
                    job.done.set_exception(ServerUnreachable("the server is short of threads; try again later"))

    def _take(self) -> list[_Job]:
        """The oldest job and those that can share its pass; a session's jobs stay in order."""
        first = self._jobs[0]
        batch: list[_Job] = []
        passed: set[str] = set()
        batches = 0
        for job in list(self._jobs):
            count, session = len(job.item.upload.batches), job.item.session.name
            same = job.item.session.engine is first.item.session.engine
            fits = same and job.item.upload.segments == first.item.upload.segments
            if fits and session not in passed and (not batch or batches + count <= self._most_batches):
                batch.append(job)
                batches += count
                self._jobs.remove(job)
            else:
                passed.add(session)
        return batch

    def _make(self, batch: list[_Job]) -> None:
        start = time.perf_counter()
        errors: list[Exception | None]
        try:
            errors = self._admission.make([job.item for job in batch])
            batches = sum(len(job.item.upload.batches) for job in batch)
            self._observe("prepare", batches, time.perf_counter() - start)
        except Exception as failure:
            errors = [failure] * len(batch)
        for job, error in zip(batch, errors, strict=True):
            if error is None:
                job.done.set_result(None)
            else:
                job.done.set_exception(_told(error))


def _told(error: Exception) -> VeilError:
    """What a client learns of an error; the log has what it must not."""
    if isinstance(error, VeilError):
        return error
    if isinstance(error, MemoryError):
        return QuotaExceeded("the server is out of memory for batches; try again later")
    _LOG.error("preparing failed", exc_info=error)
    return VeilError("the server failed while it prepared batches; its log says why")
