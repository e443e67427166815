"""What the server counts: what was counted in bulk is there when somebody reads."""

from __future__ import annotations

from prometheus_client import generate_latest

from veil.server.metrics import Metrics
from veil.server.stages import Stages


def test_a_reader_sees_the_message_before() -> None:
    metrics = Metrics()
    stages = Stages(metrics.staged)
    metrics.before_reading(stages.flush)
    for rows in (2, 3):
        stages.answered((0.1, 0.2, 0.5, 0.1), messages=1, rows=rows, computed_s=0.25)
    text = generate_latest(metrics.registry).decode()
    for line in ("veil_rows_total 5.0", 'veil_seconds_total{phase="evaluate"} 0.5', "veil_messages_total 2.0"):
        assert line in text.splitlines()
