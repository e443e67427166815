"""Which rows are next: together where one product can answer several, fair between flows, prompts in pieces."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from veil.kernels.interface import Rows
from veil.server.engine import Claim
from veil.server.turns import Asked, FairTurns, RowPiece, cut

MODEL = SimpleNamespace(weights=[np.zeros((100, 100), np.int8)] * 8)
ENGINE: Any = SimpleNamespace(model=MODEL, joins_groups=False)
JOINING: Any = SimpleNamespace(model=MODEL, joins_groups=True)
ROW_S = 0.001


def ask(flow: str, group: int = 0, rows: int = 1, since: float = 0.0, slots: int = 100, engine: Any = ENGINE) -> Asked:
    data = np.arange(rows, dtype=np.uint8)[:, None]
    shares = [Rows(np.arange(rows, dtype=np.uint32)[:, None], 0, rows)]
    return Asked(engine, Claim(group, data, shares, slots), flow, lambda _: None, since)


def served(pieces: list[RowPiece]) -> list[tuple[str, int]]:
    return [(piece.asked.flow, piece.claim.count) for piece in pieces]


def test_rows_of_one_group_are_answered_together() -> None:
    turns = FairTurns()
    for number in range(6):
        turns.add(ask(f"user {number}", group=number % 2))
    first, second = turns.take(0.0), turns.take(0.0)
    assert {len(first), len(second)} == {3} and len(turns) == 0
    assert {piece.claim.group for piece in first} != {piece.claim.group for piece in second}


def test_an_engine_that_joins_groups_gets_those_of_all_but_prompts() -> None:
    turns = FairTurns(most_rows=6)
    for number in range(5):
        turns.add(ask(f"user {number}", group=number, slots=100 - number, engine=JOINING))
    turns.add(ask("another engine's"))
    turns.add(ask("too many", rows=2, engine=JOINING))
    turns.add(ask("a prompt's", group=7, rows=40, engine=JOINING))
    kinds = []
    while len(turns):
        pieces = turns.take(0.0)
        turns.took(pieces, 0.001)
        kinds.append({(piece.asked.engine is JOINING, piece.asked.prompt) for piece in pieces})
        assert all(len(kind) == 1 for kind in kinds), "engines and prompts are kept apart"
        if kinds[-1] == {(True, False)}:
            assert sum(piece.claim.count for piece in pieces) <= 6
    assert kinds.count({(True, False)}) == 2, "seven rows of six groups are two products"


def test_other_outputs_or_too_many_rows_are_another_product() -> None:
    turns = FairTurns(most_rows=3)
    for number in range(4):
        turns.add(ask(f"user {number}"))
    turns.add(ask("few outputs", slots=50))
    assert sorted(len(turns.take(0.0)) for _ in range(3)) == [1, 1, 3]


def test_the_group_that_most_wait_for_is_next_unless_somebody_waited_long() -> None:
    for now, group in ((0.0, 1), (1.0, 0)):
        turns = FairTurns()
        turns.add(ask("alone", group=0, since=0.0))
        for number in range(3):
            turns.add(ask(f"user {number}", group=1, since=0.0 if now == 0.0 else now))
        assert turns.take(now)[0].claim.group == group


def test_clients_who_are_apart_in_a_pass_come_to_be_together() -> None:
    """Four clients through passes of eight groups, each asking for the next group as soon as it has an answer."""
    turns, now, places = FairTurns(), 0.0, {"a": 0, "b": 2, "c": 4, "d": 6}
    for flow, group in places.items():
        turns.add(ask(flow, group))
    products = []
    for _ in range(60):
        now += ROW_S
        pieces = turns.take(now)
        products.append(len(pieces))
        for piece in pieces:
            turns.add(ask(piece.asked.flow, (piece.claim.group + 1) % 8, since=now))
    assert products[0] == 1
    assert products[-8:] == [4] * 8


def test_who_asks_much_waits_behind_himself() -> None:
    """Sixty sessions of one owner, each on a group of its own, and one session of another: every second product is his."""
    turns = FairTurns()
    now, answered = 0.0, {"greedy": 0, "modest": 0}
    for number in range(60):
        turns.add(ask("greedy", group=number % 7, rows=16, since=now))
    turns.add(ask("modest", group=7, since=now))
    for _ in range(200):
        now += ROW_S
        for piece in turns.take(now):
            answered[piece.asked.flow] += piece.claim.count
            turns.add(ask(piece.asked.flow, piece.claim.group, piece.claim.count, now))
    waited = answered["modest"]
    assert waited >= 60, answered


def test_a_prompt_is_cut_only_in_company_and_comes_back_in_order() -> None:
    turns = FairTurns(piece_s=0.002)
    turns._rate = 100 * 100 * 16 / 0.002  # 16 rows in 2 ms
    turns.add(ask("prompt", rows=64, since=10.0))
    assert served(turns.take(10.0)) == [("prompt", 64)]  # nobody else was there lately
    prompt = ask("prompt", rows=60, since=20.0)
    turns.add(ask("user", group=1, since=20.0))
    turns.add(prompt)
    order, rows = [], []
    now = 20.0
    while len(turns):
        pieces = turns.take(now)
        order.append(pieces[0].asked.flow)
        if pieces[0].asked is prompt:
            rows += pieces[0].claim.rows[:, 0].tolist()
            part = pieces[0].claim.shares[0]
            assert part.material[part.first, 0] == pieces[0].claim.rows[0, 0]
        now += 0.002
        turns.took(pieces, 0.002)
        if "user" in order and order[-1] == "user" and len(order) < 8:
            turns.add(ask("user", group=1, since=now))
    assert rows == list(range(60))
    assert order[:6].count("prompt") == 3 and order[:6].count("user") == 3  # half of the time each


def test_a_single_client_is_never_kept_waiting_by_its_own_past() -> None:
    turns = FairTurns()
    for number in range(1000):
        turns.add(ask("one", since=float(number)))
        assert len(turns.take(float(number))) == 1
    assert len(turns) == 0 and not turns._ends


def test_flows_that_are_gone_are_forgotten() -> None:
    turns = FairTurns()
    for number in range(1000):
        turns.add(ask(f"user {number}", since=float(number)))
        turns.add(ask(f"other {number}", group=1, since=float(number)))
        turns.take(float(number))
        turns.take(float(number))
    assert len(turns._ends) < 200


def test_a_cut_claim_has_the_rows_and_shares_that_belong_together() -> None:
    data = np.arange(10, dtype=np.uint8)[:, None]
    shares = [Rows(np.arange(4)[:, None], 1, 3), Rows(np.arange(100, 120)[:, None], 5, 7)]
    whole = Claim(2, data, shares, 9)
    expected = [1, 2, 3, *range(105, 112)]
    for first in range(10):
        for last in range(first + 1, 11):
            part = cut(whole, first, last)
            found = [int(own.material[own.first + row, 0]) for own in part.shares for row in range(own.count)]
            assert found == expected[first:last] and part.rows[:, 0].tolist() == list(range(first, last))
            assert (part.group, part.slots) == (2, 9)
