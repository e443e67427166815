"""The pool hands each group fresh masks in order, marked spent, and lets go of what no group will use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.client.pool import MaskPool
from veil.crypto.mask import ClientMask

Q, UP, HEAD = 0, 1, 2


@pytest.fixture
def pool(pair: Any) -> MaskPool:
    pool = MaskPool(pair.manifest)
    pool.start_session("s")
    return pool


def mask(number: int) -> ClientMask:
    return ClientMask(number, np.zeros(1, dtype=np.uint32), {}, set())


def fill(pool: MaskPool, *numbers: int, full: bool = True) -> list[ClientMask]:
    masks = [mask(number) for number in numbers]
    assert pool.add("s", masks, full=full)
    return masks


def take(pool: MaskPool, group: int, rows: int, prompt_rows: int = 0) -> list[int]:
    taken = pool.take(group, rows, prompt_rows)
    assert taken is not None
    assert taken[0] == "s"
    assert all(mask.is_spent(group) for mask in taken[1])
    return [mask.number for mask in taken[1]]


def test_each_group_takes_the_oldest_that_it_has_not_used(pool: MaskPool) -> None:
    fill(pool, 0, 1, 2, 3)
    assert take(pool, Q, 2) == [0, 1]
    assert take(pool, UP, 1) == [0]
    assert take(pool, Q, 1) == [2]
    assert take(pool, UP, 2) == [1, 2]


def test_a_short_pool_hands_out_nothing(pool: MaskPool) -> None:
    masks = fill(pool, 0, 1)
    assert pool.take(Q, 3, 0) is None
    assert not any(mask.is_spent(Q) for mask in masks)
    assert take(pool, Q, 2) == [0, 1]
    assert pool.take(Q, 1, 0) is None


def test_taking_no_rows(pool: MaskPool) -> None:
    assert take(pool, Q, 0) == []


def test_prompt_rows_come_from_masks_without_the_head_first(pool: MaskPool) -> None:
    fill(pool, 0, 1, full=False)
    fill(pool, 2, 3)
    assert take(pool, Q, 3, prompt_rows=2) == [0, 1, 2]
    assert take(pool, UP, 2, prompt_rows=0) == [2, 3]
    assert take(pool, HEAD, 1) == [2]


def test_the_head_never_gets_a_mask_without_it(pool: MaskPool) -> None:
    fill(pool, 0, 1, full=False)
    assert pool.take(HEAD, 1, 1) is None
    fill(pool, 2)
    assert take(pool, HEAD, 1, prompt_rows=1) == [2]


@pytest.mark.parametrize(
    ("prompt", "full", "rows", "prompt_rows", "expected"),
    [(0, 0, 3, 2, (2, 1)), (2, 1, 3, 2, (0, 0)), (1, 1, 3, 2, (1, 0)), (0, 3, 3, 2, (0, 0)), (5, 0, 3, 2, (0, 1))],
)
def test_missing_says_what_to_make(
    pool: MaskPool, prompt: int, full: int, rows: int, prompt_rows: int, expected: tuple[int, int]
) -> None:
    fill(pool, *range(prompt), full=False)
    fill(pool, *range(10, 10 + full))
    missing = pool.missing(Q, rows, prompt_rows)
    assert (missing.prompt, missing.full) == expected
    assert bool(missing) is (expected != (0, 0))
    fill(pool, *range(20, 20 + missing.prompt), full=False)
    fill(pool, *range(40, 40 + missing.full))
    assert len(take(pool, Q, rows, prompt_rows)) == rows


def test_a_forward_pass_starts_level(pool: MaskPool) -> None:
    """A group that was called twice, or not at all, does not keep masks: all go on from the furthest body group."""
    fill(pool, 0, 1, 2, 3)
    take(pool, Q, 2)
    take(pool, UP, 1)
    session, gone = pool.level()
    assert (session, gone) == ("s", [0, 1])
    assert take(pool, UP, 1) == [2]
    assert take(pool, HEAD, 1) == [2]
    assert pool.level() == ("s", [2])
    assert pool.level() == ("s", [])


def test_the_head_alone_does_not_drop_masks_that_the_body_needs(pool: MaskPool) -> None:
    fill(pool, 0, 1)
    take(pool, HEAD, 2)
    assert pool.level()[1] == []
    assert take(pool, Q, 2) == [0, 1]
    assert pool.take(HEAD, 1, 0) is None


def test_no_order_of_calls_hands_out_a_mask_twice(pool: MaskPool) -> None:
    """A thousand random calls; `ClientMask.spend` raises on a second use, and the record is checked as well."""
    draw, seen, number = np.random.default_rng(1), set(), 0
    for _ in range(1000):
        group, rows = int(draw.integers(3)), int(draw.integers(1, 5))
        prompt_rows = 0 if group == HEAD else int(draw.integers(rows + 1))
        missing = pool.missing(group, rows, prompt_rows)
        fill(pool, *range(number, number + missing.prompt), full=False)
        fill(pool, *range(number + missing.prompt, number + missing.prompt + missing.full))
        number += missing.prompt + missing.full
        for taken in take(pool, group, rows, prompt_rows):
            assert (group, taken) not in seen
            seen.add((group, taken))
        if draw.integers(10) == 0:
            pool.level()
    assert len(seen) > 2000


def test_a_new_session_starts_empty_and_old_masks_stay_out(pool: MaskPool) -> None:
    fill(pool, 0, 1)
    take(pool, Q, 1)
    pool.start_session("t")
    assert pool.take(Q, 1, 0) is None
    assert not pool.add("s", [mask(2)], full=True)
    assert pool.unused(full=True) == 0
    assert pool.add("t", [mask(3)], full=True)
    taken = pool.take(Q, 1, 0)
    assert taken is not None and taken[0] == "t" and taken[1][0].number == 3


def test_masks_that_the_server_forgot_are_not_handed_out(pair: Any) -> None:
    now = [0.0]
    pool = MaskPool(pair.manifest, clock=lambda: now[0])
    pool.start_session("s", keep_s=10.0)
    fill(pool, 0, 1)
    now[0] = 6.0
    fill(pool, 2)
    now[0] = 12.0
    assert pool.unused(full=True) == 1
    assert take(pool, Q, 1) == [2]
    assert pool.level() == ("s", [0, 1, 2])


def test_one_mask_for_all_groups_while_they_are_level(pool: MaskPool) -> None:
    """`take_level` spends the mask for each group, and gives none once a group is ahead of the others."""
    first, second, third = fill(pool, 0, 1, 2)
    assert pool.take_level([Q, UP, HEAD]) is first
    assert all(first.is_spent(group) for group in (Q, UP, HEAD))
    assert take(pool, UP, 1) == [1]
    assert pool.take_level([Q, UP, HEAD]) is None
    assert not second.is_spent(Q)
    pool.level()
    assert pool.take_level([Q, UP, HEAD]) is third
    assert pool.take_level([Q, UP, HEAD]) is None
