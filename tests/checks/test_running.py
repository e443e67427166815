"""A row's running test is the same in every backend, on the host's sums or beside them, and as strict as rows' together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.checks.running import RunningTest
from veil.kernels.interface import Kernels, Rows, Scaling, SignVectors

pytestmark = pytest.mark.usefixtures("interpreter")

SIZES = np.array([1, 2, 2, 5, 18])
BOUND = 8.0


class OneRow:
    """A running test of chunks that are a group of one slot each, whose residuals are what a row of them says."""

    def __init__(self, kernels: Kernels, sizes: Any, whitening: Any) -> None:
        self.kernels, self.running, self.ends = kernels, RunningTest(sizes), np.cumsum(sizes)[:-1]
        self.known = [self.vectors(size) for size in sizes.tolist()]
        self.test = self.running.one_row(kernels, [(own, 32) for own in self.known], whitening, BOUND)
        ones = kernels.asarray(np.ones(1, np.float32))
        self.scaling, self.shares = Scaling(None, ones, ones, 1.0, 0.0), [Rows(kernels.zeros(1, 1), 0, 1)]
        self.answer = kernels.asarray(np.array([[1, 0, 0, 0]], np.uint8))

    def vectors(self, size: int) -> SignVectors:
        """Of size 1, whose residuals are a result's integer times ``inverse``."""
        edges, signs, sums = np.array([0, 1], np.int32), np.ones((size, 1), np.int8), np.zeros((1, size, 1), np.int16)
        return self.kernels.load_vectors(edges, signs, sums, np.ones((1, size)))

    def add(self, row: Any) -> bool:
        parts = np.split(row, self.ends) if self.known else []
        for place, own, part in zip(self.test.places, self.known, parts, strict=True):
            if isinstance(place, np.ndarray):
                place[0] = part
                continue
            own.inverse.copy_(own.inverse.new_tensor(part))
            nothing = self.kernels.asarray(np.zeros((1, 1), np.int32))
            scales = self.kernels.asarray(np.ones(1))
            given = self.answer, nothing, self.scaling, self.shares, 0, 32, scales
            _, worst = self.kernels.decrypt_checked(*given, own, place)
            assert float(worst) == 0.0, "it is known when the test was launched"
        with np.errstate(all="ignore"):  # Triton's interpreter computes with NumPy
            self.test.launch()
        return self.test.passed()


@pytest.fixture
def drawn() -> tuple[Any, Any, Any]:
    """Residuals of five rows, each chunk's matrix, and the matrices as a kernel has them."""
    draw = np.random.default_rng(3)
    matrices = [0.2 * np.tril(draw.standard_normal((size, size))) for size in SIZES]
    return draw.standard_normal((5, SIZES.sum())), matrices, np.concatenate([own.reshape(-1) for own in matrices])


def squares(residuals: Any, matrices: Any) -> Any:
    parts = np.split(residuals, np.cumsum(SIZES)[:-1])
    return np.array([np.square(own @ part).sum() for own, part in zip(matrices, parts, strict=True)])


def test_rows_are_added_alike(kernels: Kernels, drawn: Any) -> None:
    rows, matrices, flat = drawn
    alone, apart = OneRow(kernels, SIZES, flat), RunningTest(SIZES)
    for row in rows:
        assert alone.add(row) and apart.add(squares(row, matrices), 1) is None
    assert alone.running.sums == pytest.approx(apart.sums, rel=1e-9) and np.array_equal(alone.running.rows, apart.rows)


def test_a_prompts_rows_and_single_ones_have_one_sum(kernels: Kernels, drawn: Any) -> None:
    """Whoever reads or changes sums has those of the rows before, and the next row adds to what was changed."""
    rows, matrices, flat = drawn
    mixed, apart = OneRow(kernels, SIZES, flat), RunningTest(SIZES)
    for turn, row in enumerate(rows):
        if turn % 2:
            mixed.running.add(squares(row, matrices), 1)
        else:
            mixed.add(row)
        apart.add(squares(row, matrices), 1)
    assert mixed.running.reached == pytest.approx(apart.reached, rel=1e-9)
    mixed.running.sums[:] = 0.0
    apart.sums[:] = 0.0
    mixed.add(rows[0])
    apart.add(squares(rows[0], matrices), 1)
    assert mixed.running.sums == pytest.approx(apart.sums, rel=1e-9)


@pytest.mark.parametrize("size", [30.0, 1e200, np.inf, np.nan])
def test_a_chunk_that_is_far_off_is_named(kernels: Kernels, drawn: Any, size: float) -> None:
    rows, matrices, flat = drawn
    row = rows[0].copy()
    row[7] = size
    alone = OneRow(kernels, SIZES, flat)
    assert alone.add(rows[1]) and not alone.add(row)
    assert alone.running.beyond == 3
    with np.errstate(all="ignore"):
        assert RunningTest(SIZES).add(squares(row, matrices), 1) == 3


@pytest.mark.parametrize("place", [0, 1, 9, 10, 27])
@pytest.mark.parametrize("size", [8.001, -8.001, np.nan])
def test_a_residual_beyond_the_bound_does_not_pass(kernels: Kernels, place: int, size: float) -> None:
    """However little it changes a sum: here its square counts for almost nothing."""
    flat = np.concatenate([1e-6 * np.eye(own).reshape(-1) for own in SIZES])
    row = np.zeros(SIZES.sum())
    alone = OneRow(kernels, SIZES, flat)
    row[place] = np.nan_to_num(size, nan=1.0) / 8.002 * 7.999
    assert alone.add(row) and alone.running.beyond is None
    row[place] = size
    assert not alone.add(row)


def test_a_sum_beyond_its_limit_does_not_pass(kernels: Kernels) -> None:
    """Though each row of it is within the bound, and whichever chunk of many it is."""
    alone, row = OneRow(kernels, np.array([1] * 67), np.ones(67)), np.zeros(67)
    row[66] = BOUND
    assert [alone.add(row) for _ in range(2)] == [True, False]
    assert alone.running.beyond == 66


def test_residuals_can_be_read_before_the_test(kernels: Kernels, drawn: Any) -> None:
    rows, _, flat = drawn
    alone = OneRow(kernels, SIZES, flat)
    launch, alone.test.launch = alone.test.launch, lambda: None  # type: ignore[method-assign]
    alone.add(rows[0])
    assert alone.test.residuals == pytest.approx(rows[0], rel=1e-12)
    assert alone.running.reached == pytest.approx(np.log(1e-300)), "they were not tested"
    launch()
    assert alone.test.passed() and alone.running.reached > np.log(1e-300)


def test_a_test_of_no_chunks_passes(kernels: Kernels) -> None:
    nothing = np.zeros(0)
    assert OneRow(kernels, np.zeros(0, np.int64), nothing).add(nothing)


def test_a_verdict_is_the_last_rows_own(kernels: Kernels, drawn: Any) -> None:
    """Also where a replay was counted that did not come to the GPU, or came and was not counted."""
    rows, _, flat = drawn
    alone = OneRow(kernels, SIZES, flat)
    bad = rows[0].copy()
    bad[3] = 9.0
    alone.test.replayed()
    assert alone.add(rows[0]) and not alone.add(bad)
    alone.test.replayed()
    assert not alone.test.passed()
    alone.test.launch()
    alone.test.launch()
    assert not alone.test.passed(), "the residuals that are there are still those of the bad row"
    assert alone.test.residuals == pytest.approx(bad, rel=1e-12)
