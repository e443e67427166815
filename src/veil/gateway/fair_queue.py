"""Who is next: a bounded line that takes from each caller in turn, and a lock that generations share token by token."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from veil.flag import Flag
from veil.gateway.failures import busy


class Job:
    """Work that waits in a `Line` or runs; ``cancelled`` is for the work to look at. The work must not raise."""

    def __init__(self, caller: str, work: Callable[[], None]) -> None:
        self.caller = caller
        self.work = work
        self.cancelled = Flag()


class FairQueue:
    """A few threads that run jobs: first come, first served for one caller, and the callers by turns.

    One caller's jobs leave a thread to the others, where there are several. At most ``most_waiting`` jobs wait.
    """

    def __init__(self, threads: int, most_waiting: int) -> None:
        self._per_caller = max(1, threads - 1)
        self._most_waiting = most_waiting
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"veil-answer-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Have a job done in its turn. `ApiError` 429 when the queue is full."""
        with self._changed:
            idle = len(self._threads) - self.running
            if self._closed or self.waiting - idle >= self._most_waiting:
                raise busy(self._most_waiting)
            self._waiting.setdefault(job.caller, deque()).append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job that waits out of the queue, or tell the running work to stop."""
        job.cancelled.set()
        with self._changed:
            jobs = self._waiting.get(job.caller)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._waiting[job.caller]

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Jobs that run."""
        with self._changed:
            return len(self._active)

    def close(self, within_s: float = 30.0) -> None:
        """Drop what waits and tell what runs to stop; return when it has, or after ``within_s``."""
        with self._changed:
            self._closed = True
            for job in [*self._active, *(job for jobs in self._waiting.values() for job in jobs)]:
                job.cancelled.set()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(within_s)

    def _serve(self) -> None:
        while True:
            with self._changed:
                job = self._next()
                while job is None and not self._closed:
                    self._changed.wait()
                    job = self._next()
                if job is None:
                    return
                self._active.append(job)
            try:
                job.work()
            finally:
                with self._changed:
                    self._active.remove(job)
                    self._changed.notify_all()

    def _next(self) -> Job | None:
        """The first job of the first caller who may start one; that caller goes to the end of the queue."""
        for caller, jobs in self._waiting.items():
            if sum(active.caller == caller for active in self._active) < self._per_caller:
                job = jobs.popleft()
                del self._waiting[caller]
                if jobs:
                    self._waiting[caller] = jobs
                return job
        return None


class TurnLock:
    """A lock that is handed on in the order in which it was asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._queue: deque[threading.Lock] = deque()

    def acquire(self) -> None:
        """Wait for the turn."""
        with self._guard:
            if not self._held:
                self._held = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._queue.append(gate)
        gate.acquire()

    def release(self) -> None:
        """End the turn; it goes to whoever has waited longest."""
        with self._guard:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._held = False

    @property
    def wanted(self) -> bool:
        """Whether someone waits for the turn."""
        with self._guard:
            return bool(self._queue)
