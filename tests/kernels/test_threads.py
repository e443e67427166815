"""Which products run on one thread and which on all: what was quicker lately."""

from __future__ import annotations

import pytest

from veil.kernels.cpu import threads
from veil.kernels.cpu.threads import ProductThreads

WORK = 1 << 20


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> ProductThreads:
    monkeypatch.setattr(threads, "all_threads", lambda: 2)
    return ProductThreads()


def run(chosen: ProductThreads, calls: int, alone: float, together: float) -> list[int]:
    """The threads of some calls, which take so long with one thread and with two."""
    found = []
    for _ in range(calls):
        count = chosen.choose(WORK)
        chosen.took(WORK, count, alone if count == 1 else together)
        found.append(count)
    return found


def test_what_is_quicker_is_chosen(chosen: ProductThreads) -> None:
    assert run(chosen, 500, alone=2.0, together=1.0)[200:].count(1) <= 20
    assert run(chosen, 5000, alone=1.0, together=2.0)[1000:].count(2) <= 200


def test_small_products_have_one_thread(chosen: ProductThreads) -> None:
    assert chosen.choose(1000) == 1


def test_processes_that_come_are_noticed_within_twenty_calls(chosen: ProductThreads) -> None:
    run(chosen, 20000, alone=2.0, together=1.0)  # the other way is tried rarely by now
    while chosen.choose(WORK) == 1:
        run(chosen, 1, alone=2.0, together=1.0)
    assert run(chosen, 100, alone=2.5, together=20.0).count(2) <= 20


def test_a_machine_that_is_slower_as_a_whole_changes_nothing(chosen: ProductThreads) -> None:
    run(chosen, 20000, alone=2.0, together=1.0)
    assert run(chosen, 1000, alone=20.0, together=10.0).count(1) <= 30
