"""What the checks catch, at their own level: in the first row, or within twenty. Each figure can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from veil.checks.rows import BOUND
from veil.checks.running import RunningTest

ROWS, SETS = 200, 5


def low_bits(weights: Any, bits: int) -> Any:
    step = 2 ** (8 - bits)
    return np.clip(np.rint(weights.astype(np.float64) / step) * step, -127, 127).astype(np.int8)


def one_slot(own: Any, x: Any, size: float) -> Any:
    """Honest answers but for one slot of each row."""
    results = own.results(x)
    slots = own.draw.integers(0, own.group.rows, len(x))
    sign = own.draw.choice([-1, 1], len(x))
    results[np.arange(len(x)), slots] += np.rint(sign * size).astype(np.int64).astype(np.uint32)
    return results


def largest_bound(own: Any, checks: Any) -> float:
    return BOUND / float(checks.vectors[0][own.group.rows].inverse.min())


def another(own: Any, x: Any) -> Any:
    return own.results(x, np.roll(own.weights, 1, axis=1))


def swapped(own: Any, x: Any) -> Any:
    """The answers of a group of the same shape."""
    return own.results(x, own.weights[::-1].copy())


CHEATS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "one slot by twice the bound": lambda own, checks, x: one_slot(own, x, 2 * largest_bound(own, checks)),
    "another layer": lambda own, checks, x: another(own, x),
    "an old reply": lambda own, checks, x: own.results(np.roll(x, 1, axis=0)),
    "weights of 4 bits": lambda own, checks, x: own.results(x, low_bits(own.weights, 4)),
    "two groups swapped": lambda own, checks, x: swapped(own, x),
    "a slot steered to the top": lambda own, checks, x: one_slot(own, x, 5 * own.rms),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_caught_by_its_first_row_every_time(simulated: Any, name: str) -> None:
    """1,000 of 1,000 rows, under five sets of vectors."""
    caught = 0
    for checks in simulated.several(SETS):
        x = simulated.rows(ROWS)
        _, worst = simulated.residuals(checks, x, CHEATS[name](simulated, checks, x))
        caught += int((worst > BOUND).sum())
    assert caught == SETS * ROWS


def test_honest_answers_have_the_spread_that_is_predicted(simulated: Any) -> None:
    """Mean square 1, five deviations of the sample around it, and nothing near the bound."""
    squares, largest = [], 0.0
    for checks in simulated.several(SETS):
        x = simulated.rows(ROWS)
        residuals, worst = simulated.residuals(checks, x, simulated.results(x))
        white = checks._whitening[0]
        own = residuals.reshape(len(x), *white.shape[:2])
        squares.append(np.square(np.einsum("kab,rkb->rka", white, own)))
        largest = max(largest, float(worst.max()))
    values = np.concatenate([part.reshape(-1) for part in squares])
    assert abs(values.mean() - 1) < 5 * np.sqrt(2 / values.size)
    assert largest < BOUND - 2


SMALL: dict[str, Callable[[Any, Any], Any]] = {
    "weights of 7 bits": lambda own, x: own.results(x, low_bits(own.weights, 7)),
    "one slot by a quarter of its size": lambda own, x: same_slot(own, x, 0.25 * own.rms),
    "every slot by a fiftieth": lambda own, x: every_slot(own, x, 0.02 * own.rms),
}


def same_slot(own: Any, x: Any, size: float) -> Any:
    """One slot, the same in every row: a logit that is held up."""
    results = own.results(x)
    results[:, 5] += np.rint(own.draw.choice([-1, 1], len(x)) * size).astype(np.int64).astype(np.uint32)
    return results


def every_slot(own: Any, x: Any, size: float) -> Any:
    results = own.results(x)
    return results + np.rint(own.draw.choice([-1, 1], results.shape) * size).astype(np.int64).astype(np.uint32)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_change_is_caught_within_twenty_rows(simulated: Any, name: str) -> None:
    caught = [simulated.rows_until_caught(lambda x: SMALL[name](simulated, x), 20) for _ in range(20)]
    assert max(caught) <= 20


def test_without_the_running_test_a_small_change_passes(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.checks.rows.RunningTest", lambda freedom: RunningTest(freedom, 1e-300))  # never an alarm
    caught = [simulated.rows_until_caught(lambda x: same_slot(simulated, x, 0.1 * simulated.rms), 20) for _ in range(5)]
    assert caught == [21] * 5


def test_a_tiny_bias_is_caught_in_the_end(simulated: Any) -> None:
    """Far below the bound: a slot by a thirtieth of its size."""
    rows = simulated.rows_until_caught(lambda x: same_slot(simulated, x, 0.033 * simulated.rms), 400)
    assert 3 < rows <= 400


def test_a_honest_server_of_many_rows_is_not_accused(simulated: Any) -> None:
    assert simulated.rows_until_caught(simulated.results, 600) == 601


def test_a_change_late_in_a_long_session_is_caught_as_well(simulated: Any) -> None:
    """What came before does not count for the server."""
    checks, x = simulated.checks(), simulated.rows(420)
    results = simulated.results(x)
    results[400:] = same_slot(simulated, x[400:], 0.25 * simulated.rms)
    for row in range(400):
        simulated.check(checks, x[row : row + 1], results[row : row + 1])
    with pytest.raises(Exception, match="are not those of the weights"):
        for row in range(400, 420):
            simulated.check(checks, x[row : row + 1], results[row : row + 1])


def test_a_group_of_few_slots_is_checked_as_often(other_shape: Any) -> None:
    own = other_shape(40)
    caught = 0
    for _ in range(SETS):
        checks, x = own.checks(), own.rows(ROWS)
        _, worst = own.residuals(checks, x, own.results(x, low_bits(own.weights, 4)))
        caught += int((worst > BOUND).sum())
    assert caught == SETS * ROWS
