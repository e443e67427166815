"""Warming up leaves the checks nothing to compile."""

from __future__ import annotations

import numpy as np
from numba.core.dispatcher import Dispatcher

from veil.checks import one_row, warm
from veil.checks.running import RunningTest


def signatures() -> dict[str, list[object]]:
    return {name: list(own.signatures) for name, own in vars(one_row).items() if isinstance(own, Dispatcher)}


def test_a_checked_row_compiles_nothing_after_the_warm_up() -> None:
    for step in warm.steps():
        step()
    before = signatures()
    assert before["add_row"] and before["refine_likely"]
    matrices = [np.eye(2), np.eye(3)]
    test = RunningTest(np.array([2, 3]))
    test.add_row(np.zeros(5), np.concatenate([own.reshape(-1) for own in matrices]))
    one_row.refine_likely(np.ones(4, np.float32), np.ones((9, 4), np.float32), 3, np.zeros(9, np.float32))
    assert signatures() == before
