"""The background thread makes what is announced, the prompt first, within its memory, and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.client import background as module
from veil.client.background import BackgroundMaker, OfflineRows
from veil.client.pool import RowPool
from veil.crypto.batch import RowBatch
from veil.errors import QuotaExceeded, ServerUnreachable
from waiting import until

Q = 0
ROWS = 4


class Maker:
    """Makes batches of four rows at once and keeps the order in which they were asked for."""

    batches = SimpleNamespace(batch_bytes=1 << 20)

    def __init__(self, pool: RowPool) -> None:
        self.pool = pool
        self.made: list[tuple[int, bool]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._number = 0

    def stop(self) -> None:
        self.gate.set()

    def make(self, rows: int, *, full: bool) -> None:
        self.gate.wait(5)
        self.made.append((rows, full))
        for _ in range(-(-rows // ROWS)):
            batch = RowBatch(self._number, np.zeros((ROWS, 1), dtype=np.uint32), {}, 3, ROWS)
            self._number += 1
            self.pool.add("s", [batch], full=full)


@pytest.fixture
def background_of(pair: Any) -> Iterator[Callable[..., tuple[BackgroundMaker, Maker, RowPool]]]:
    made: list[BackgroundMaker] = []

    def make(**offline_rows: int) -> tuple[BackgroundMaker, Maker, RowPool]:
        pool = RowPool(pair.manifest)
        pool.start_session("s")
        maker = Maker(pool)
        made.append(BackgroundMaker(maker, pool, OfflineRows(**offline_rows), ROWS))  # type: ignore[arg-type]
        return made[-1], maker, pool

    yield make
    for background in made:
        background.stop()


def counts(pool: RowPool) -> tuple[int, int]:
    """Rows that nobody has used: a prompt's, and those with the head."""
    return pool.unused(full=False), pool.unused(full=True)


def test_the_pool_is_kept_filled_with_whole_batches(background_of: Any) -> None:
    background, maker, pool = background_of(tokens=5, prompt_rows=3)
    until(lambda: background.full and counts(pool) == (4, 8))
    assert maker.made == [(ROWS, True), (ROWS, True), (ROWS, False)], "tokens come first"
    pool.take(Q, 5, 0)
    background.forward()
    until(lambda: pool.unused(full=True) == 7)


def test_an_announced_generation_is_prepared_prompt_first(background_of: Any) -> None:
    background, maker, pool = background_of(tokens=0, prompt_rows=0)
    until(lambda: background.full)
    assert maker.made == []
    background.expect(20, 10)
    until(lambda: background.full)
    assert counts(pool) == (20, 12)
    kinds = [full for _, full in maker.made]
    assert kinds == [True] + 5 * [False] + 2 * [True], "a few tokens, the prompt, the other tokens"


def test_expecting_returns_at_once(background_of: Any) -> None:
    background, maker, _ = background_of(tokens=0, prompt_rows=0)
    maker.gate.clear()
    expecting = threading.Thread(target=background.expect, args=(100, 100))
    expecting.start()
    expecting.join(60)  # the maker waits at its gate meanwhile
    assert not expecting.is_alive()
    maker.gate.set()


def test_the_last_announcement_counts(background_of: Any) -> None:
    background, maker, pool = background_of(tokens=0, prompt_rows=0)
    maker.gate.clear()
    background.expect(400, 0)
    background.expect(9, 2)
    maker.gate.set()
    until(lambda: background.full)
    assert pool.unused(full=True) == 4
    assert 8 <= pool.unused(full=False) <= 12, "one batch may have been under way"


def test_what_was_announced_is_not_prepared_twice(background_of: Any) -> None:
    """As a generation uses its rows, what is still to come of it shrinks to nothing."""
    background, maker, pool = background_of(tokens=0, prompt_rows=0)
    background.expect(9, 4)
    until(lambda: background.full)
    assert counts(pool) == (8, 4)
    background.rows(9)
    pool.take(Q, 9, 8)
    for _ in range(3):
        background.rows(1)
        pool.take(Q, 1, 0)
    made = len(maker.made)
    background.forward()
    assert background.full
    assert (counts(pool), len(maker.made)) == ((0, 0), made)


def test_rows_of_a_running_generation_leave_the_next_ones_prompt(background_of: Any) -> None:
    background, _, pool = background_of(tokens=4, prompt_rows=0)
    until(lambda: background.full)
    background.expect(30, 4)
    for _ in range(10):
        background.rows(1)
    until(lambda: pool.unused(full=False) == 32)


def test_an_announcement_stays_within_the_memory(background_of: Any) -> None:
    """Of five batches, whatever they are for."""
    background, maker, pool = background_of(tokens=4, prompt_rows=0, memory_mib=5)
    background.expect(1000, 1000)
    until(lambda: background.full)
    assert sum(counts(pool)) == 5 * ROWS
    assert pool.unused(full=True) >= 1
    assert len(maker.made) == 5


@pytest.mark.parametrize("tokens", [0, 1, 7, 1 << 30])
@pytest.mark.parametrize("prompt_rows", [0, 1, 7, 1 << 30])
def test_what_is_kept_ready_stays_within_the_memory(background_of: Any, tokens: int, prompt_rows: int) -> None:
    background, _, pool = background_of(tokens=tokens, prompt_rows=prompt_rows, memory_mib=3)
    until(lambda: background.full)
    assert sum(counts(pool)) <= 3 * ROWS


def test_a_long_answer_is_prepared_piece_by_piece(background_of: Any) -> None:
    background, _, pool = background_of(tokens=0, prompt_rows=0)
    background.expect(2, 4000)
    until(lambda: background.full)
    assert pool.unused(full=True) == 64


def test_while_an_announced_generation_runs_only_its_rows_are_made(
    background_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of what should be ready waits until the answer is there, for it would slow that down."""
    background, _, pool = background_of(tokens=20, prompt_rows=0)
    until(lambda: background.full)
    monkeypatch.setattr(module, "_IDLE_S", 60.0)
    background.forward()
    background.expect(1, 4)
    pool.start_session("s")
    background.forward()
    until(lambda: pool.unused(full=True) == 4)
    assert background.full
    monkeypatch.setattr(module, "_IDLE_S", 0.0)
    background.forward()
    until(lambda: pool.unused(full=True) == 20)


def test_who_waits_is_served_before_the_pool_is_filled(background_of: Any) -> None:
    """Whole batches of prompt rows without the head; what is left of the prompt, and the last row, with it."""
    background, maker, _ = background_of(tokens=0, prompt_rows=0)
    session, parts = background.wait_for(Q, 11, 10)
    assert session == "s" and sum(part.count for part in parts) == 11
    assert maker.made == [(8, False), (3, True)]


def test_what_goes_wrong_is_raised_where_rows_are_waited_for(background_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    background, maker, _ = background_of(tokens=0, prompt_rows=0)

    def fail(rows: int, *, full: bool) -> None:
        raise QuotaExceeded("no room")

    monkeypatch.setattr(maker, "make", fail)
    with pytest.raises(QuotaExceeded, match="no room"):
        background.wait_for(Q, 1, 0)
    monkeypatch.undo()
    assert background.wait_for(Q, 1, 0)[1][0].count == 1


def test_who_waits_for_rows_is_told_that_the_session_was_closed(background_of: Any) -> None:
    """Also who begins to wait after that."""
    background, maker, _ = background_of(tokens=0, prompt_rows=0)
    maker.gate.clear()
    said: list[str] = []

    def wait_for_rows() -> None:
        try:
            background.wait_for(Q, 1, 0)
        except ServerUnreachable as error:
            said.append(str(error))

    waiting = threading.Thread(target=wait_for_rows, daemon=True)
    waiting.start()
    until(lambda: background._wanted is not None)
    background.stop()
    waiting.join(5)
    assert not waiting.is_alive()
    wait_for_rows()
    assert said == ["the session was closed"] * 2
