"""A row's running test in one kernel is what numpy makes of it, and as strict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.checks.running import RunningTest

SIZES = np.array([1, 2, 2, 5, 18])


@pytest.fixture
def drawn() -> tuple[Any, Any, Any]:
    """Residuals of five rows, each chunk's matrix, and the matrices as a kernel has them."""
    draw = np.random.default_rng(3)
    matrices = [0.2 * np.tril(draw.standard_normal((size, size))) for size in SIZES]
    return draw.standard_normal((5, SIZES.sum())), matrices, np.concatenate([own.reshape(-1) for own in matrices])


def squares(residuals: Any, matrices: Any) -> Any:
    parts = np.split(residuals, np.cumsum(SIZES)[:-1])
    return np.array([np.square(own @ part).sum() for own, part in zip(matrices, parts, strict=True)])


def test_rows_are_added_alike(drawn: Any) -> None:
    rows, matrices, flat = drawn
    together, apart = RunningTest(SIZES), RunningTest(SIZES)
    for row in rows:
        assert together.add_row(row, flat) is None and apart.add(squares(row, matrices), 1) is None
    assert together.sums == pytest.approx(apart.sums, rel=1e-9) and np.array_equal(together.rows, apart.rows)


@pytest.mark.parametrize("size", [30.0, 1e200, np.nan])
def test_a_chunk_that_is_far_off_is_named(drawn: Any, size: float) -> None:
    rows, matrices, flat = drawn
    row = rows[0].copy()
    row[7] = size
    for test in (RunningTest(SIZES), RunningTest(SIZES)):
        assert test.add_row(row, flat) == 3
    with np.errstate(all="ignore"):
        assert RunningTest(SIZES).add(squares(row, matrices), 1) == 3
