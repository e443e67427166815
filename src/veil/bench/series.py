"""Cost against model width: one family measured at several widths, and the formula that should run through the points.

Every phase of a token has a fixed part and one that grows with one quantity of the model. Taken from the smallest and the
largest width, the formula gives those between.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from veil.bench import run, subjects
from veil.bench.record import FORMAT, Machine, Phase, Ratio, Record, Settings, Subject, TokenSeconds
from veil.progress import Progress


@dataclass(frozen=True, kw_only=True)
class WidthPoint:
    """One width: the model and its token."""

    model: Subject
    token_s: TokenSeconds
    ratio: Ratio
    phases: tuple[Phase, ...]
    highest_bytes: int


@dataclass(frozen=True, kw_only=True)
class WidthSeries:
    """One run of ``veil bench --widths``; the machine is as it was for the last width."""

    format: int
    commit: str
    versions: dict[str, str]
    machine: Machine
    settings: Settings
    points: tuple[WidthPoint, ...]


@dataclass(frozen=True)
class Quantities:
    """What a model's costs grow with; S outputs, I inputs."""

    outputs: float
    inputs: float
    weights: float
    calls: float

    @classmethod
    def of(cls, model: Subject) -> Quantities:
        """Of a measured model."""
        return cls(model.outputs, model.inputs, model.remote_weights, model.remote_layers)

    @classmethod
    def of_width(cls, width: float) -> Quantities:
        """Of the family at any width d: I = L·7d + d, S = L·11.5d + V, weights = L·14.5d² + V·d."""
        layers, vocabulary = subjects.SERIES_LAYERS, subjects.SERIES_VOCABULARY
        return cls(
            outputs=11.5 * layers * width + vocabulary,
            inputs=(7 * layers + 1) * width,
            weights=14.5 * layers * width**2 + vocabulary * width,
            calls=7 * layers + 1,
        )

    def of_phase(self, phase: str) -> float:
        """The quantity that a phase grows with; the expansion of a mask and calls do not grow in this family."""
        return {
            "client masks": self.inputs + self.outputs,
            "expand": 1.0,
            "hint product": self.outputs,
            "combine": self.outputs,
            "take and keep": self.outputs,
            "client encrypt": self.inputs,
            "online product": self.weights,
            "transport": self.calls,
            "client decrypt": self.outputs,
            "client layers": self.inputs,
            "whole pass": self.weights,
        }[phase]


def predicted(points: Sequence[WidthPoint], width: float) -> TokenSeconds:
    """The formula: each phase is a fixed part and one proportional to its quantity, both from the first and last point."""
    first, last = points[0], points[-1]
    low, high, here = Quantities.of(first.model), Quantities.of(last.model), Quantities.of_width(width)
    online = ahead = 0.0
    for start, end in zip(first.phases, last.phases, strict=True):
        line = (low.of_phase(start.name), start.token.median_s), (high.of_phase(end.name), end.token.median_s)
        seconds = _on_line(*line, here.of_phase(start.name))
        online, ahead = (online + seconds, ahead) if start.moment == "online" else (online, ahead + seconds)
    plain = None
    if first.token_s.plaintext is not None and last.token_s.plaintext is not None:
        plain = _on_line((low.weights, first.token_s.plaintext), (high.weights, last.token_s.plaintext), here.weights)
    return TokenSeconds(total=online + ahead, online=online, plaintext=plain)


def measure(request: run.Request, widths: Sequence[int], progress: Progress) -> WidthSeries:
    """Measure every width, one after the other; only phases, no links and no peer."""
    request = replace(request, links=(), peer=False)
    records = []
    for width in widths:
        records.append(run.measure(request, _prefixed(progress, f"width {width}: "), subjects.of_width(width)))
        gc.collect()
    last = records[-1]
    return WidthSeries(
        format=FORMAT,
        commit=last.commit,
        versions=last.versions,
        machine=last.machine,
        settings=last.settings,
        points=tuple(map(_point, records)),
    )


def is_series(path: Path) -> bool:
    """Whether a file holds a `WidthSeries`; False also for what cannot be read."""
    try:
        return "points" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _on_line(first: tuple[float, float], last: tuple[float, float], x: float) -> float:
    """The value at x of the line through two points; the mean of their values where they stand at one place."""
    (x0, y0), (x1, y1) = first, last
    return (y0 + y1) / 2 if x0 == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _point(record: Record) -> WidthPoint:
    return WidthPoint(
        model=record.model,
        token_s=record.token_s,
        ratio=record.ratio,
        phases=record.phases,
        highest_bytes=record.memory.highest_bytes,
    )


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda stage, done, total: progress(prefix + stage, done, total)
