"""Signal to noise by width: what is measured is what is predicted."""

from __future__ import annotations

import pytest

from veil.bench import precision
from veil.params import Params

TINY = Params.insecure_tiny()


def test_measured_and_predicted_agree() -> None:
    """4,096 errors a width: the deviation of each is within 5 % of its prediction, the decibels within half of one."""
    series = precision.measure("cpu", (48, 200), lambda stage, done, total: None, TINY)
    assert [point.width for point in series.points] == [48, 200]
    for point in series.points:
        assert (point.slots, point.rows) == (64, 64)
        assert point.error_ratio == pytest.approx(1.0, abs=0.05)
        assert point.measured_db == pytest.approx(point.predicted_db, abs=1.0)
        assert point.largest_slot_db >= point.predicted_db > 30 and 8 <= point.result_bits <= 24
    assert series.kind == "signal" and series.parameters["security_bits"] == 0
