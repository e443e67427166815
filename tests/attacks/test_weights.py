"""A client that wants the weights: as many rows as a layer is wide are enough. A budget of rows keeps it from them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veil.errors import QuotaExceeded
from veil.network.tokens import Tokens, digest_of
from veil.server.budget import RowBudget

GROUP = 0
TOKENS = Tokens([digest_of("one"), digest_of("two")])


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now


def solved(remote: Any, rows: int) -> Any:
    """The integer weights of a group as far as so many rows tell, by least squares."""
    session, manifest = remote.sides.remote, remote.manifest
    group = manifest.groups[GROUP]
    draw = np.random.default_rng(1)
    x = draw.standard_normal((rows, group.width)).astype(np.float32)
    y = np.concatenate([np.asarray(session.evaluate(GROUP, x[i : i + 8])) for i in range(0, rows, 8)])
    constants = remote.sides.compiled.constants[GROUP]
    y = (y - constants.bias) / constants.scale
    if constants.divisors is not None:
        x = x / constants.divisors
    return np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)[0].T


def test_a_layers_weights_follow_from_as_many_rows_as_it_is_wide(llama: Any, serve: Any, tmp_path: Path) -> None:
    weights = llama.engine.model.weights[GROUP]
    width = weights.shape[1]
    with serve(llama, tokens=TOKENS) as server:
        remote = llama.connect(server.port, token="one")
        found = np.rint(solved(remote, 4 * width))
        remote.close()
    assert np.mean(found == weights) == 1.0, "every weight is known"
    budget = RowBudget(width // 2, tmp_path / "rows.json")
    with serve(llama, tokens=TOKENS, budget=budget) as server:
        remote = llama.connect(server.port, token="one")
        with pytest.raises(QuotaExceeded, match=rf"allows your token {width // 2} rows a day"):
            solved(remote, 4 * width)
        with pytest.raises(QuotaExceeded):
            solved(remote, 8)
        remote.close()
    assert budget.most_used <= width // 2 and budget.refused > 0


class Stand:
    """What a budget needs of an engine."""

    def __init__(self, model: Any) -> None:
        self.model = model


@pytest.fixture
def engine(llama: Any) -> Stand:
    return Stand(llama.engine.model)


def test_rows_are_counted_by_token_and_layer_until_midnight(engine: Stand, tmp_path: Path) -> None:
    clock = Clock()
    budget = RowBudget(10, tmp_path / "rows.json", clock)
    budget.spend("a", engine, 0, 10)
    budget.spend("a", engine, 1, 10)
    budget.spend("b", engine, 0, 9)
    with pytest.raises(
        QuotaExceeded, match=r"10 rows a day, 10 are used and 1 more .* from 2026-03-02 00:00 UTC on"
    ) as caught:
        budget.spend("a", engine, 0, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(QuotaExceeded, match="your token"):
        budget.spend("b", engine, 0, 2)
    budget.spend("", engine, 0, 10)
    with pytest.raises(QuotaExceeded, match="all callers together"):
        budget.spend("", engine, 0, 1)
    assert budget.refused == 4
    clock.now = datetime(2026, 3, 2, 0, 0, 1, tzinfo=timezone.utc)
    budget.spend("a", engine, 0, 10)


def test_a_restart_gives_nothing_back_also_after_a_kill(engine: Stand, tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "deep" / "rows.json"
    RowBudget(640, path, clock).spend("a", engine, 0, 600)  # no call at the end: it was killed
    again = RowBudget(640, path, clock)
    with pytest.raises(QuotaExceeded):
        again.spend("a", engine, 0, 41)
    again.spend("a", engine, 0, 30)
    assert path.stat().st_mode & 0o077 == 0
    clock.now = clock.now.replace(day=2)
    RowBudget(640, path, clock).spend("a", engine, 0, 640)
    clock.now = clock.now.replace(day=1)  # a clock that is put back begins no new day
    with pytest.raises(QuotaExceeded):
        RowBudget(640, path, clock).spend("a", engine, 0, 640)


def test_a_file_that_is_none_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"rows\.json cannot be read; check it, or remove it"):
        RowBudget(10, path)
