"""Rows offline: a background thread that keeps the pool filled and serves a forward pass that runs short."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal

from veil.client.maker import RowMaker
from veil.client.pool import Part, RowPool
from veil.errors import ServerUnreachable
from veil.given import count_given
from veil.priority import lower_thread_priority

LineName = Literal["prompt", "full", "back"]
_IDLE_S = 0.5

_MOST_ANNOUNCED_TOKENS = 64
"""Rows for generated tokens that an announced generation has ready at once; more are made as they are used."""


@dataclass(frozen=True, kw_only=True)
class OfflineRows:
    """How many rows to keep ready: ``tokens`` with the head, ``prompt_rows`` without, in ``memory_mib`` at most.

    Rows come in whole batches. Tokens come first. Prompt rows are made while no forward pass has run for half a second. A
    generation that was announced (`BackgroundMaker.expect`) raises both, within the same memory.
    """

    tokens: int = 48
    prompt_rows: int = 64
    memory_mib: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            count_given(name, value)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Rows that are ready: ``tokens`` for rows with logits, ``prompt_rows`` for the others, ``back`` for gradients."""

    tokens: int = 0
    prompt_rows: int = 0
    back: int = 0


@dataclass(eq=False)
class _Announced:
    """What is left of a generation that was announced."""

    prompt_rows: int = 0
    tokens: int = 0


class BackgroundMaker:
    """The thread that has a `RowMaker` make batches: first what a pass waits for, and no more; then up to `OfflineRows`."""

    def __init__(self, maker: RowMaker, pool: RowPool, offline_rows: OfflineRows, batch_rows: int) -> None:
        self._maker = maker
        self._pool = pool
        self._batch_rows = batch_rows
        self._room = batch_rows * max(1, (offline_rows.memory_mib << 20) // maker.batches.batch_bytes)
        self._tokens = min(offline_rows.tokens, self._room)
        self._prompt_rows = max(0, min(offline_rows.prompt_rows, self._room - self._tokens))
        self._announced = _Announced()
        self._step_rows = 0
        self._wanted: tuple[int, int, int] | None = None
        self._error: Exception | None = None
        self._paused = False
        self._stopping = False
        self._forward = 0.0
        self._thread = threading.Thread(target=self._run, name="veil-rows", daemon=True)
        self._thread.start()

    def wait_for(self, group: int, rows: int, prompt_rows: int) -> tuple[str, list[Part]]:
        """`RowPool.take` as soon as it can; raises what prevents it, `ServerUnreachable` after `stop`."""
        with self._pool.lock:
            self._wanted, self._error, self._paused = (group, rows, prompt_rows), None, False
            self._pool.changed.notify_all()
            try:
                while True:
                    if self._stopping:
                        raise ServerUnreachable("the session was closed")
                    taken = self._pool.take(group, rows, prompt_rows)
                    if taken is not None:
                        return taken
                    if self._error is not None:
                        raise self._error
                    self._pool.changed.wait(1.0)
            finally:
                self._wanted = None

    def forward(self) -> None:
        """Note that a forward pass begins: what was refused before may be allowed now."""
        with self._pool.lock:
            self._forward = time.monotonic()
            self._paused = False
            self._pool.changed.notify_all()

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Begin to prepare for a generation: its prompt first, then its tokens. A later call replaces an earlier one."""
        with self._pool.lock:
            self._announced = _Announced(max(0, prompt_rows - 1), new_tokens)
            self._paused = False
            self._pool.changed.notify_all()

    def expect_step(self, rows: int) -> None:
        """Note that training runs, in steps of this many rows: those of the next one are kept ready, both ways."""
        with self._pool.lock:
            if rows != self._step_rows:
                self._step_rows, self._paused = rows, False
                self._pool.changed.notify_all()

    def rows(self, count: int) -> None:
        """Note that a forward pass of this many rows runs: several are the announced prompt's, one is a token's."""
        with self._pool.lock:
            announced = self._announced
            if count > 1 or announced.prompt_rows == 0:
                announced.prompt_rows = 0
                announced.tokens = max(0, announced.tokens - 1)

    @property
    def full(self) -> bool:
        """Whether the pool holds what it should, or cannot get more for now."""
        with self._pool.lock:
            return self._paused or self._missing() is None

    def stop(self) -> None:
        """End the thread, and the upload that it is at; who waits for rows is told."""
        with self._pool.lock:
            self._stopping = True
            self._pool.changed.notify_all()
        self._maker.stop()
        self._thread.join()

    def _run(self) -> None:
        lower_thread_priority()
        while True:
            with self._pool.lock:
                work = self._next()
                while work is None and not self._stopping:
                    self._pool.changed.wait(_IDLE_S)
                    work = self._next()
            if work is None or self._stopping:
                return
            rows, line = work
            try:
                if line == "back":
                    self._maker.make_back(rows)
                else:
                    self._maker.make(rows, full=line == "full")
            except Exception as error:
                self._failed(error)

    def _next(self) -> tuple[int, LineName] | None:
        """Rows of the next upload, and the line that they are for."""
        if self._paused:
            return None
        if self._wanted is not None:
            missing = self._pool.missing(*self._wanted)
            if missing.back:
                return missing.back, "back"
            if missing:
                whole = missing.prompt // self._batch_rows * self._batch_rows
                return (whole, "prompt") if whole else (missing.prompt + missing.full, "full")
        return self._missing()

    def _missing(self) -> tuple[int, LineName] | None:
        """One batch of what the pool lacks beside what is waited for."""
        tokens, prompt_rows = self._levels()
        ready, ready_prompt = self._pool.unused(full=True), self._pool.unused(full=False)
        if self._announced.prompt_rows and ready and ready_prompt < prompt_rows:
            return self._batch_rows, "prompt"
        if ready < tokens:
            return self._batch_rows, "full"
        if self._pool.unused_back < min(self._step_rows, self._room):
            return self._batch_rows, "back"
        return (self._batch_rows, "prompt") if ready_prompt < prompt_rows else None

    def _levels(self) -> tuple[int, int]:
        """Rows to keep ready, (with the head, without), within the memory; batches are whole, so there may be more.

        While an announced generation runs, those that it may need: others would take the cores from it.
        """
        announced = self._announced
        least = 0 if announced.tokens and not self._idle else self._tokens
        held, held_prompt = self._pool.unused(full=True), self._pool.unused(full=False)
        tokens = max(least, min(announced.tokens, _MOST_ANNOUNCED_TOKENS), self._step_rows)
        prompt_rows = max(self._prompt_rows if self._idle else 0, announced.prompt_rows)
        return min(tokens, self._room - held_prompt), min(prompt_rows, self._room - max(tokens, held))

    @property
    def _idle(self) -> bool:
        return time.monotonic() - self._forward > _IDLE_S

    def _failed(self, error: Exception) -> None:
        with self._pool.lock:
            self._error = error
            self._paused = True
            self._pool.changed.notify_all()
