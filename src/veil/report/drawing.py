"""Two kinds of SVG drawings: bars with their values, and lines over an index. Classes name colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 720
_LABEL, _VALUE = 150, 80


@dataclass(frozen=True)
class Line:
    """A named series, drawn in a class's colour."""

    name: str
    kind: str
    values: Sequence[float]
    dashed: bool = False


def bars(rows: Sequence[tuple[str, float, str, str]], *, log: bool = False) -> str:
    """Horizontal bars of (label, value, value as text, class), on a logarithmic scale if ``log``."""
    sizes = [_length(value, log) for _, value, _, _ in rows]
    least = min(sizes) - 0.3 if log and sizes else 0.0
    span = max([size - least for size in sizes] or [1.0]) or 1.0
    parts = []
    for index, ((label, _, shown, kind), size) in enumerate(zip(rows, sizes, strict=True)):
        middle, long = 28 * index + 18, max(1.0, (size - least) / span * (_WIDTH - _LABEL - _VALUE))
        parts.append(f'<text x="{_LABEL - 10}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="{kind}" x="{_LABEL}" y="{middle - 8}" width="{long:.1f}" height="16" rx="2"/>')
        parts.append(f'<text class="value" x="{_LABEL + long + 8:.1f}" y="{middle + 4}">{escape(shown)}</text>')
    described = ", ".join(f"{label} {shown}" for label, _, shown, _ in rows)
    return _svg(28 * len(rows) + 8, described, parts)


def _length(value: float, log: bool) -> float:
    return math.log10(max(value, 1e-6)) if log else max(value, 0.0)


def lines(series: Sequence[Line], *, unit: str, below: str) -> str:
    """Series over their index, with a scale at the left, a legend on top and a caption for the axis."""
    left, top, right, bottom = 48, 34, _WIDTH - 10, 270
    values = [value for line in series for value in line.values]
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(values) / 10)
    high = max(high, low + 10)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = []
    for mark in range(low, high + 1, 10):
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark}</text>')
    for index, line in enumerate(series):
        step = (right - left) / max(1, len(line.values) - 1)
        points = " ".join(f"{left + step * i:.1f},{y(value):.1f}" for i, value in enumerate(line.values))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline class="line {line.kind}" style="fill:none" points="{points}"{dash}/>')
        x = left + index * 190
        parts.append(f'<line class="line {line.kind}" x1="{x}" x2="{x + 22}" y1="12" y2="12"{dash}/>')
        parts.append(f'<text class="value" x="{x + 28}" y="16">{escape(line.name)}</text>')
    parts.append(f'<text x="{left}" y="{bottom + 22}">{escape(below)}</text>')
    parts.append(f'<text x="{left - 8}" y="{top - 8}" text-anchor="end">{escape(unit)}</text>')
    described = "; ".join(f"{line.name}: {min(line.values):.1f} to {max(line.values):.1f} {unit}" for line in series)
    return _svg(bottom + 32, described, parts)


def _svg(height: float, described: str, parts: Sequence[str]) -> str:
    label = escape(described, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
