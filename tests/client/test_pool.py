"""The pool hands each group fresh rows in order, spent, and lets go of batches that no group will use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.client.pool import RowPool
from veil.crypto.batch import RowBatch
from veil.errors import RowReused

Q, UP, HEAD = 0, 1, 2
ROWS = 4


@pytest.fixture
def pool(pair: Any) -> RowPool:
    pool = RowPool(pair.manifest)
    pool.start_session("s")
    return pool


def batch(number: int, rows: int = ROWS) -> RowBatch:
    return RowBatch(number, np.zeros((rows, 1), dtype=np.uint32), {}, 3, rows)


def fill(pool: RowPool, *numbers: int, full: bool = True, rows: int = ROWS) -> list[RowBatch]:
    batches = [batch(number, rows) for number in numbers]
    assert pool.add("s", batches, full=full)
    return batches


def take(pool: RowPool, group: int, rows: int, prompt_rows: int = 0) -> list[tuple[int, int, int]]:
    """(batch, first, count) of what was taken; all of it is spent."""
    taken = pool.take(group, rows, prompt_rows)
    assert taken is not None
    assert taken[0] == "s"
    assert all(part.batch.taken(group) >= part.first + part.count for part in taken[1])
    return [(part.batch.number, part.first, part.count) for part in taken[1]]


def test_each_group_takes_the_oldest_that_it_has_not_used(pool: RowPool) -> None:
    fill(pool, 0, 1)
    assert take(pool, Q, 3) == [(0, 0, 3)]
    assert take(pool, UP, 1) == [(0, 0, 1)]
    assert take(pool, Q, 3) == [(0, 3, 1), (1, 0, 2)]
    assert take(pool, UP, 7) == [(0, 1, 3), (1, 0, 4)]


def test_a_short_pool_hands_out_nothing(pool: RowPool) -> None:
    batches = fill(pool, 0, 1)
    assert pool.take(Q, 9, 0) is None
    assert [own.taken(Q) for own in batches] == [0, 0]
    assert take(pool, Q, 8) == [(0, 0, 4), (1, 0, 4)]
    assert pool.take(Q, 1, 0) is None


def test_taking_no_rows(pool: RowPool) -> None:
    assert take(pool, Q, 0) == []
    fill(pool, 0)
    assert take(pool, Q, 0) == []


def test_prompt_rows_come_from_batches_without_the_head_first(pool: RowPool) -> None:
    fill(pool, 0, full=False)
    fill(pool, 1)
    assert take(pool, Q, 6, prompt_rows=5) == [(0, 0, 4), (1, 0, 2)]
    assert take(pool, UP, 2, prompt_rows=0) == [(1, 0, 2)]
    assert take(pool, HEAD, 1) == [(1, 0, 1)]


def test_the_head_never_gets_a_row_without_it(pool: RowPool) -> None:
    fill(pool, 0, full=False)
    assert pool.take(HEAD, 1, 1) is None
    fill(pool, 2)
    assert take(pool, HEAD, 1, prompt_rows=1) == [(2, 0, 1)]


@pytest.mark.parametrize(
    ("prompt", "full", "rows", "prompt_rows", "expected"),
    [(0, 0, 3, 2, (2, 1)), (2, 1, 3, 2, (0, 0)), (1, 1, 3, 2, (1, 0)), (0, 3, 3, 2, (0, 0)), (5, 0, 3, 2, (0, 1))],
)
def test_missing_says_what_to_make(
    pool: RowPool, prompt: int, full: int, rows: int, prompt_rows: int, expected: tuple[int, int]
) -> None:
    fill(pool, *range(prompt), full=False, rows=1)
    fill(pool, *range(10, 10 + full), rows=1)
    missing = pool.missing(Q, rows, prompt_rows)
    assert (missing.prompt, missing.full) == expected
    assert bool(missing) is (expected != (0, 0))
    fill(pool, *range(20, 20 + missing.prompt), full=False, rows=1)
    fill(pool, *range(40, 40 + missing.full), rows=1)
    assert len(take(pool, Q, rows, prompt_rows)) == rows


def test_a_forward_pass_starts_level(pool: RowPool) -> None:
    """A group that was called twice, or not at all, does not keep rows: all go on from the furthest body group."""
    fill(pool, 0, 1)
    take(pool, Q, 5)
    take(pool, UP, 1)
    assert pool.level() == ("s", [0])
    assert take(pool, UP, 1) == [(1, 1, 1)]
    assert take(pool, HEAD, 1) == [(1, 1, 1)]
    assert pool.level() == ("s", [])
    assert take(pool, Q, 2) == [(1, 2, 2)]
    assert pool.level() == ("s", [1])
    assert pool.level() == ("s", [])


def test_the_head_alone_does_not_drop_rows_that_the_body_needs(pool: RowPool) -> None:
    fill(pool, 0)
    take(pool, HEAD, 4)
    assert pool.level()[1] == []
    assert take(pool, Q, 4) == [(0, 0, 4)]
    assert pool.take(HEAD, 1, 0) is None


def test_unused_rows_are_those_that_no_group_has_taken(pool: RowPool) -> None:
    fill(pool, 0, 1)
    fill(pool, 2, full=False)
    assert (pool.unused(full=True), pool.unused(full=False)) == (8, 4)
    take(pool, HEAD, 3)
    take(pool, Q, 5)
    assert (pool.unused(full=True), pool.unused(full=False)) == (3, 4)


def test_no_order_of_calls_hands_out_a_row_twice(pool: RowPool) -> None:
    """A thousand random calls; `RowBatch.take` raises on a second use, and the record is checked as well."""
    draw, seen, number = np.random.default_rng(1), set(), 0
    for _ in range(1000):
        group, rows = int(draw.integers(3)), int(draw.integers(1, 7))
        prompt_rows = 0 if group == HEAD else int(draw.integers(rows + 1))
        missing = pool.missing(group, rows, prompt_rows)
        for count, full in ((missing.prompt, False), (missing.full, True)):
            batches = -(-count // ROWS)
            fill(pool, *range(number, number + batches), full=full)
            number += batches
        for own, first, count in take(pool, group, rows, prompt_rows):
            for row in range(first, first + count):
                assert (group, own, row) not in seen
                seen.add((group, own, row))
        if draw.integers(10) == 0:
            pool.level()
        if draw.integers(10) == 0:
            part = pool.take_level([Q, UP, HEAD])
            for each in (Q, UP, HEAD) if part else ():
                assert part is not None and (each, part.batch.number, part.first) not in seen
                seen.add((each, part.batch.number, part.first))
    assert len(seen) > 3000


def test_a_new_session_starts_empty_and_old_batches_stay_out(pool: RowPool) -> None:
    old = fill(pool, 0, 1)
    take(pool, Q, 1)
    pool.start_session("t")
    assert pool.take(Q, 1, 0) is None
    assert not pool.add("s", [batch(2)], full=True)
    assert pool.unused(full=True) == 0
    assert pool.add("t", [batch(3)], full=True)
    taken = pool.take(Q, 1, 0)
    assert taken is not None and taken[0] == "t" and taken[1][0].batch.number == 3
    with pytest.raises(RowReused):
        old[0].take(Q, ROWS)


def test_batches_that_the_server_forgot_are_not_handed_out(pair: Any) -> None:
    now = [0.0]
    pool = RowPool(pair.manifest, clock=lambda: now[0])
    pool.start_session("s", keep_s=10.0)
    fill(pool, 0, 1)
    now[0] = 6.0
    fill(pool, 2)
    now[0] = 12.0
    assert pool.unused(full=True) == ROWS
    assert not pool.missing(Q, ROWS, 0) and pool.missing(Q, ROWS + 1, 0).full == 1
    assert take(pool, Q, ROWS) == [(2, 0, ROWS)]
    assert pool.level() == ("s", [0, 1, 2])


def test_one_row_for_all_groups_while_they_are_level(pool: RowPool) -> None:
    """`take_level` spends the row for each group, and gives none once a group is ahead of the others."""
    first, second = fill(pool, 0, 1, rows=2)
    part = pool.take_level([Q, UP, HEAD])
    assert part is not None and (part.batch, part.first, part.count) == (first, 0, 1)
    assert [first.taken(group) for group in (Q, UP, HEAD)] == [1, 1, 1]
    assert take(pool, UP, 1) == [(0, 1, 1)]
    assert pool.take_level([Q, UP, HEAD]) is None
    assert first.taken(Q) == 1
    pool.level()
    part = pool.take_level([Q, UP, HEAD])
    assert part is not None and (part.batch, part.first) == (second, 0)
    assert pool.take_level([Q, UP, HEAD]) is not None
    assert pool.take_level([Q, UP, HEAD]) is None
