"""Masks ahead of time: a background thread that keeps the pool filled and serves a forward pass that runs short."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from veil.client.factory import MaskFactory
from veil.client.pool import MaskPool
from veil.crypto.mask import ClientMask
from veil.errors import ServerUnreachable
from veil.priority import lower_thread_priority

_IDLE_S = 0.5
_MOST_BATCH = 16
_WORTH_A_BATCH = 8

_FIRST_TOKENS = 4
"""Masks for generated tokens that are made before an announced prompt's."""

_MOST_ANNOUNCED_TOKENS = 48
"""Masks for generated tokens that an announced generation has ready at once; more are made as they are used."""


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """How many masks to keep ready: ``tokens`` rows with the head, ``prompt_rows`` without, in ``memory_mib`` at most.

    Tokens come first. Prompt rows are made while no forward pass has run for half a second. A generation that was
    announced (`Filler.expect`) raises both, within the same memory.
    """

    tokens: int = 48
    prompt_rows: int = 64
    memory_mib: int = 512


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Masks that wait for their rows: ``tokens`` for rows with logits, ``prompt_rows`` for the others."""

    tokens: int = 0
    prompt_rows: int = 0


@dataclass(eq=False)
class _Announced:
    """What is left of a generation that was announced."""

    prompt_rows: int = 0
    tokens: int = 0


class Filler:
    """The thread that makes masks: first what a forward pass waits for, and no more than that; then up to `Ahead`."""

    def __init__(self, factory: MaskFactory, pool: MaskPool, ahead: Ahead) -> None:
        self._factory = factory
        self._pool = pool
        self._room = max(1, (ahead.memory_mib << 20) // factory.mask_bytes)
        self._tokens = min(ahead.tokens, self._room)
        self._prompt_rows = max(0, min(ahead.prompt_rows, self._room - self._tokens))
        self._announced = _Announced()
        self._wanted: tuple[int, int, int] | None = None
        self._error: Exception | None = None
        self._paused = False
        self._stopping = False
        self._forward = 0.0
        self._thread = threading.Thread(target=self._run, name="veil-masks", daemon=True)
        self._thread.start()

    def wait_for(self, group: int, rows: int, prompt_rows: int) -> tuple[str, list[ClientMask]]:
        """`MaskPool.take` as soon as it can; raises what prevents it, `ServerUnreachable` after `stop`."""
        with self._pool.changed:
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
        with self._pool.changed:
            self._forward = time.monotonic()
            self._paused = False
            self._pool.changed.notify_all()

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Begin to prepare for a generation: its prompt first, then its tokens. A later call replaces an earlier one."""
        with self._pool.changed:
            self._announced = _Announced(max(0, prompt_rows - 1), new_tokens)
            self._paused = False
            self._pool.changed.notify_all()

    def rows(self, count: int) -> None:
        """Note that a forward pass of this many rows runs: several are the announced prompt's, one is a token's."""
        with self._pool.changed:
            announced = self._announced
            if count > 1 or announced.prompt_rows == 0:
                announced.prompt_rows = 0
                announced.tokens = max(0, announced.tokens - 1)

    @property
    def full(self) -> bool:
        """Whether the pool holds what it should, or cannot get more for now."""
        with self._pool.changed:
            if self._paused:
                return True
            tokens, prompt_rows = self._levels()
            return self._pool.unused(full=True) >= tokens and self._pool.unused(full=False) >= prompt_rows

    def stop(self) -> None:
        """End the thread, and the batch that it is at; who waits for masks is told."""
        with self._pool.changed:
            self._stopping = True
            self._pool.changed.notify_all()
        self._factory.stop()
        self._thread.join()

    def _run(self) -> None:
        lower_thread_priority()
        while True:
            with self._pool.changed:
                work = self._next()
                while work is None and not self._stopping:
                    self._pool.changed.wait(_IDLE_S)
                    work = self._next()
            if work is None or self._stopping:
                return
            count, full = work
            try:
                self._factory.make(count, full=full)
            except Exception as error:
                self._failed(error)

    def _next(self) -> tuple[int, bool] | None:
        """(masks, with the head or not) of the next batch. The fewer are ready, the smaller it is."""
        if self._paused:
            return None
        if self._wanted is not None:
            missing = self._pool.missing(*self._wanted)
            if missing:
                return (missing.full, True) if missing.full else (missing.prompt, False)
        tokens, prompt_rows = self._levels()
        ready = self._pool.unused(full=True)
        short, short_prompt = tokens - ready, prompt_rows - self._pool.unused(full=False)
        idle, announced = self._idle, self._announced
        first = min(_FIRST_TOKENS, tokens) if announced.prompt_rows else tokens
        if first > ready and (idle or short >= _WORTH_A_BATCH or 2 * short > tokens):
            return min(first - ready, _MOST_BATCH, max(4, 2 * ready)), True
        if short_prompt > 0 and (idle or announced.prompt_rows):
            return min(short_prompt, _MOST_BATCH), False
        return (min(short, _MOST_BATCH), True) if idle and short > 0 else None

    def _levels(self) -> tuple[int, int]:
        """Masks to keep ready, (with the head, without), within the memory.

        While an announced generation runs, those that it may need: others would take the cores from it.
        """
        announced = self._announced
        least = 0 if announced.tokens and not self._idle else self._tokens
        held, held_prompt = self._pool.unused(full=True), self._pool.unused(full=False)
        announced_rows = min(announced.prompt_rows, self._room - max(1, held))
        announced_tokens = min(announced.tokens, _MOST_ANNOUNCED_TOKENS)
        tokens = min(max(least, announced_tokens), self._room - max(announced_rows, held_prompt))
        return tokens, min(max(self._prompt_rows, announced_rows), self._room - max(tokens, held))

    @property
    def _idle(self) -> bool:
        return time.monotonic() - self._forward > _IDLE_S

    def _failed(self, error: Exception) -> None:
        with self._pool.changed:
            self._error = error
            self._paused = True
            self._pool.changed.notify_all()
