"""Warming up leaves the checks nothing to compile."""

from __future__ import annotations

import numpy as np
from numba.core.dispatcher import Dispatcher

from veil.checks import likely, warm
from veil.checks.running import RunningTest
from veil.kernels.cpu import row_test
from veil.kernels.cpu.backend import CpuKernels
from veil.kernels.ring import ring_of
from veil.kernels.warm import every_kernel
from veil.params import Params


def signatures() -> dict[str, list[object]]:
    return {
        name: list(own.signatures) for name, own in (vars(likely) | vars(row_test)).items() if isinstance(own, Dispatcher)
    }


def test_a_checked_row_compiles_nothing_after_the_warm_up() -> None:
    for step in (*warm.steps(), *every_kernel(ring_of(Params.insecure_tiny()))):
        step()
    before = signatures()
    assert before["refine_likely"] and before["add"]
    test = RunningTest(np.array([2, 3]))
    edges, sums = np.array([0, 1], np.int32), np.zeros((1, 3, 1), np.int16)
    known = [(CpuKernels().load_vectors(edges, np.ones((J, 1), np.int8), sums[:, :J], np.ones((1, J))), 16) for J in (2, 3)]
    row = test.one_row(CpuKernels(), known, np.concatenate([np.eye(2).reshape(-1), np.eye(3).reshape(-1)]), 8.0)
    row.launch()
    assert row.passed()
    likely.refine_likely(np.ones(4, np.float32), np.ones((9, 4), np.float32), 3, np.zeros(9, np.float32))
    assert signatures() == before
