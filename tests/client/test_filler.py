"""The background thread makes what is announced, the prompt first, within its memory, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from veil.client import filler as filler_module
from veil.client.filler import Ahead, Filler
from veil.client.pool import MaskPool
from veil.crypto.mask import ClientMask
from veil.errors import ServerUnreachable

Q = 0


class Factory:
    """Makes empty masks at once and keeps the order in which they were asked for."""

    mask_bytes = 1 << 20

    def __init__(self, pool: MaskPool) -> None:
        self.pool = pool
        self.made: list[tuple[int, bool]] = []
        self.gate = threading.Event()
        self.gate.set()

    def stop(self) -> None:
        self.gate.set()

    def make(self, count: int, *, full: bool) -> None:
        self.gate.wait(5)
        first = sum(number for number, _ in self.made)
        self.made.append((count, full))
        masks = [ClientMask(first + i, np.zeros(1, dtype=np.uint32), {}, set()) for i in range(count)]
        self.pool.add("s", masks, full=full)


@pytest.fixture
def filler_of(pair: Any) -> Iterator[Callable[..., tuple[Filler, Factory, MaskPool]]]:
    made: list[Filler] = []

    def make(**ahead: int) -> tuple[Filler, Factory, MaskPool]:
        pool = MaskPool(pair.manifest)
        pool.start_session("s")
        factory = Factory(pool)
        made.append(Filler(factory, pool, Ahead(**ahead)))  # type: ignore[arg-type]
        return made[-1], factory, pool

    yield make
    for filler in made:
        filler.stop()


@pytest.fixture
def until(until: Any) -> Any:
    return partial(until, within_s=5.0)


def test_an_announced_generation_is_prepared_prompt_first(filler_of: Any, until: Any) -> None:
    filler, factory, pool = filler_of(tokens=0, prompt_rows=0)
    until(lambda: filler.full)
    assert factory.made == []
    filler.expect(20, 10)
    until(lambda: filler.full)
    assert (pool.unused(full=False), pool.unused(full=True)) == (19, 10)
    kinds = [full for _, full in factory.made]
    assert kinds == sorted(kinds[:1], reverse=True) + sorted(kinds[1:]), "a few tokens, the prompt, the other tokens"
    assert factory.made[0] == (4, True)


def test_expecting_returns_at_once(filler_of: Any) -> None:
    filler, factory, _ = filler_of(tokens=0, prompt_rows=0)
    factory.gate.clear()
    start = time.monotonic()
    filler.expect(100, 100)
    assert time.monotonic() - start < 0.5
    factory.gate.set()


def test_the_last_announcement_counts(filler_of: Any, until: Any) -> None:
    filler, factory, pool = filler_of(tokens=0, prompt_rows=0)
    factory.gate.clear()
    filler.expect(400, 0)
    filler.expect(9, 2)
    factory.gate.set()
    until(lambda: filler.full)
    assert pool.unused(full=True) == 2
    assert 8 <= pool.unused(full=False) <= 16, "one batch may have been under way"


def test_what_was_announced_is_not_prepared_twice(filler_of: Any, until: Any) -> None:
    """As a generation uses its masks, what is still to come of it shrinks to nothing."""
    filler, _, pool = filler_of(tokens=0, prompt_rows=0)
    filler.expect(6, 3)
    until(lambda: filler.full)
    filler.rows(6)
    pool.take(Q, 6, 5)
    for _ in range(2):
        filler.rows(1)
        pool.take(Q, 1, 0)
    time.sleep(0.8)
    assert (pool.unused(full=False), pool.unused(full=True)) == (0, 0)


def test_rows_of_a_running_generation_leave_the_next_ones_prompt(filler_of: Any, until: Any) -> None:
    filler, _, pool = filler_of(tokens=4, prompt_rows=0)
    until(lambda: filler.full)
    filler.expect(30, 4)
    for _ in range(10):
        filler.rows(1)
    until(lambda: pool.unused(full=False) == 29)


def test_an_announcement_stays_within_the_memory(filler_of: Any, until: Any) -> None:
    filler, _, pool = filler_of(tokens=4, prompt_rows=0, memory_mib=20)
    filler.expect(1000, 1000)
    until(lambda: filler.full)
    assert pool.unused(full=False) + pool.unused(full=True) == 20
    assert pool.unused(full=True) >= 1


def test_a_long_answer_is_prepared_piece_by_piece(filler_of: Any, until: Any) -> None:
    filler, _, pool = filler_of(tokens=0, prompt_rows=0)
    filler.expect(2, 4000)
    until(lambda: filler.full)
    assert pool.unused(full=True) == 48


def test_while_an_announced_generation_runs_only_its_masks_are_made(
    filler_of: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """The rest of what should be ready waits until the answer is there, for it would slow that down."""
    filler, _, pool = filler_of(tokens=20, prompt_rows=0)
    until(lambda: filler.full)
    monkeypatch.setattr(filler_module, "_IDLE_S", 60.0)
    filler.forward()
    filler.expect(1, 4)
    pool.clear()
    filler.forward()
    until(lambda: pool.unused(full=True) == 4)
    assert filler.full
    monkeypatch.setattr(filler_module, "_IDLE_S", 0.0)
    filler.forward()
    until(lambda: pool.unused(full=True) == 20)


def test_who_waits_for_masks_is_told_that_the_session_was_closed(filler_of: Any, until: Any) -> None:
    """Also who begins to wait after that."""
    filler, factory, _ = filler_of(tokens=0, prompt_rows=0)
    factory.gate.clear()
    said: list[str] = []

    def wait_for_masks() -> None:
        try:
            filler.wait_for(Q, 1, 0)
        except ServerUnreachable as error:
            said.append(str(error))

    waiting = threading.Thread(target=wait_for_masks, daemon=True)
    waiting.start()
    until(lambda: filler._wanted is not None)
    filler.stop()
    waiting.join(5)
    assert not waiting.is_alive()
    wait_for_masks()
    assert said == ["the session was closed"] * 2
