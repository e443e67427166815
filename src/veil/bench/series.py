"""Cost against model width: one family measured at several widths, and the formula that should run through the points.

Every phase of a token has a fixed part and one that grows with one quantity of the model; the two are fitted to all points.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from veil.bench import run, subjects
from veil.bench.record import Record, Subject, TokenSeconds, WidthPoint, WidthSeries
from veil.progress import Progress


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
        """The quantity that a phase grows with; calls do not grow in this family."""
        return {
            "rows, client": self.inputs + self.outputs,
            "rows, server": self.outputs,
            "rows, network": 1.0,
            "rows": self.inputs + self.outputs,
            "encrypt": self.inputs,
            "product": self.weights,
            "network": self.calls,
            "decrypt": self.outputs,
            "layers": self.inputs,
            "whole pass": self.weights,
        }[phase]


def predicted(points: Sequence[WidthPoint], width: float) -> TokenSeconds:
    """The formula: each phase is a fixed part and one proportional to its quantity, as they fit all points best.

    Plaintext grows with the weights. Best is the least sum of squared relative errors, neither part below zero.
    """
    measured, here = [Quantities.of(point.model) for point in points], Quantities.of_width(width)
    online = offline = 0.0
    for phases in zip(*(point.phases for point in points), strict=True):
        name = phases[0].name
        places = [(one.of_phase(name), phase.token.median_s) for one, phase in zip(measured, phases, strict=True)]
        seconds = _on_line(places, here.of_phase(name))
        online, offline = (online + seconds, offline) if phases[0].moment == "online" else (online, offline + seconds)
    clear = [(one.weights, point.token_s.plaintext) for one, point in zip(measured, points, strict=True)]
    plain = _on_line([(x, y) for x, y in clear if y is not None], here.weights) if all(y for _, y in clear) else None
    return TokenSeconds(total=online + offline, offline=offline, online=online, plaintext=plain)


def measure(request: run.RunRequest, widths: Sequence[int], progress: Progress) -> WidthSeries:
    """Measure every width, one after the other; one prompt, and no peer."""
    request = replace(request, prompts=request.prompts[:1], peer=False)
    records = []
    for width in widths:
        records.append(run.measure(request, _prefixed(progress, f"width {width}: "), subjects.of_width(width)))
        gc.collect()
    last = records[-1]
    return WidthSeries(
        commit=last.commit,
        versions=last.versions,
        machine=last.machine,
        settings=last.settings,
        points=tuple(map(_point, records)),
    )


def _on_line(places: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x of the line a + b·x, a and b not below zero, with the least relative errors at places (x, y > 0)."""
    xs, ys = np.array(places).T
    x, xs = x / xs.max(), xs / xs.max()
    forms = [np.stack(columns, axis=1) for columns in ((np.ones_like(xs), xs), (np.ones_like(xs),), (xs,))]
    found: list[tuple[float, float]] = []
    for form, ends in zip(forms, ((1.0, x), (1.0,), (x,)), strict=True):
        parts = np.linalg.lstsq(form / ys[:, None], np.ones_like(ys), rcond=None)[0]
        if (parts >= 0).all():
            found.append((float(((form @ parts / ys - 1) ** 2).sum()), float(parts @ np.array(ends))))
    return min(found)[1]


def _point(record: Record) -> WidthPoint:
    return WidthPoint(
        model=record.model,
        token_s=record.token_s,
        ratio=record.ratio,
        prompts=record.prompts,
        phases=record.phases,
        highest_bytes=record.memory.highest_bytes,
    )


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda stage, done, total: progress(prefix + stage, done, total)
