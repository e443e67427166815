"""Plots of records. matplotlib is an optional extra; figures are made without its global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veil.bench.link import token_seconds
from veil.bench.phases import PHASES
from veil.bench.record import Record, SignalSeries, WidthSeries
from veil.bench.report import milliseconds
from veil.bench.series import predicted
from veil.errors import VeilError
from veil.network.link import Link

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")

_COLOURS = {
    "rows, client": "#fdae6b",
    "rows, server": "#e6550d",
    "rows, network": "#fee6ce",
    "rows": "#e6550d",
    "encrypt": "#6baed6",
    "product": "#31a354",
    "network": "#bdbdbd",
    "decrypt": "#3182bd",
    "layers": "#08519c",
    "whole pass": "#31a354",
}
_PLAIN, _PEER, _TOTAL, _ONLINE = "#555555", "#999999", "#e6550d", "#31a354"


class PlotsUnavailable(VeilError):
    """matplotlib is not installed."""


def check(path: Path) -> None:
    """Raise `ValueError` for a file that is neither PNG nor SVG, and `PlotsUnavailable` without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a plot is written as {' or '.join(FORMATS)}, not as {path.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotsUnavailable("plots need matplotlib; run `pip install 'veil-llm[bench]'`") from None


def save(figure: Figure, path: Path) -> None:
    """Write a figure, in a folder that is made if need be; the same figure gives the same SVG."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "veil", "svg.fonttype": "path"}):
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def phases(records: Sequence[Record]) -> Figure:
    """A token's phases, stacked, above plaintext; one panel a model, each with its own scale."""
    figure = _figure(9.0, 1.1 + 1.5 * len(records))
    panels = _panels(figure, len(records), 1)
    for axes, record in zip(panels, records, strict=True):
        left = 0.0
        for phase in record.phases:
            width = phase.token.median_s * 1e3
            hatch = "///" if phase.moment == "offline" else None
            axes.barh("veil", width, left=left, color=_COLOURS[phase.name], hatch=hatch, edgecolor="white", linewidth=0.6)
            left += width
        axes.annotate(f" {milliseconds(record.token_s.total)}", (left, 0), va="center", fontsize=9)
        if record.token_s.plaintext is not None:
            clear = record.token_s.plaintext * 1e3
            axes.barh("plaintext", clear, color=_PLAIN)
            axes.annotate(f" {milliseconds(clear / 1e3)}", (clear, 1), va="center", fontsize=9)
            left = max(left, clear)
        axes.set_xlim(0, left * 1.12)
        axes.invert_yaxis()
        axes.set_title(_title(record), fontsize=10, loc="left")
    panels[-1].set_xlabel("milliseconds a token (hatched: offline, before the token is known)")
    _legend_of_phases(figure, records)
    return figure


def sizes(records: Sequence[Record]) -> Figure:
    """Bytes of a token between client and server, against the same tensors in clear float32 and the peer."""
    figure = _figure(8.0, 4.2)
    (axes,) = _panels(figure, 1, 1)
    up = (("up, offline", "up_offline", "#9ecae1"), ("up, online", "up_online", "#3182bd"))
    parts = (*up, ("down, online", "down_online", _ONLINE))
    for place, record in enumerate(records):
        size, bottom = record.bytes_per_token, 0.0
        bars = [(place - 0.27, size.total)]
        for label, name, colour in parts:
            height = getattr(size, name) / 1e6
            axes.bar(place - 0.27, height, 0.25, bottom=bottom, color=colour, label=f"veil: {label}")
            bottom += height
        axes.bar(place, size.clear_float32 / 1e6, 0.25, color=_PLAIN, label="clear float32")
        bars.append((place, size.clear_float32))
        if size.peer is not None and record.peer is not None:
            axes.bar(place + 0.27, size.peer / 1e6, 0.25, color=_PEER, label=f"{record.peer.name} {record.peer.version}")
            bars.append((place + 0.27, size.peer))
        for x, value in bars:
            axes.annotate(f"{value / 1e6:.2f}", (x, value / 1e6), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(records)), [record.model.name for record in records])
    axes.set_ylabel("megabytes a token")
    axes.margins(y=0.12)
    _legend(figure, [axes], 3)
    return figure


def rows(records: Sequence[Record]) -> Figure:
    """Seconds of a prompt's row against the rows of the prompt."""
    figure = _figure(9.0, 3.8)
    panels = _panels(figure, 1, len(records))
    for axes, record in zip(panels, records, strict=True):
        prompts = sorted(record.prompts, key=lambda prompt: prompt.rows)
        counts = [prompt.rows for prompt in prompts]
        axes.plot(counts, [p.row_s * 1e3 for p in prompts], "o-", color=_TOTAL, label="encrypted, total")
        axes.plot(counts, [p.online_s * 1e3 for p in prompts], "s-", color=_ONLINE, label="encrypted, online")
        clear = [(p.rows, p.plaintext_s * 1e3) for p in prompts if p.plaintext_s is not None]
        if clear:
            axes.plot(*zip(*clear, strict=True), "^-", color=_PLAIN, label="plaintext float32")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("rows of the prompt")
        axes.set_title(record.model.name, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds a row")
    _legend(figure, panels, 3)
    return figure


def links(records: Sequence[Record]) -> Figure:
    """Seconds a token against round-trip time, by formula."""
    figure = _figure(9.0, 4.0)
    panels = _panels(figure, 1, len(records))
    times = np.geomspace(1e-4, 0.2, 60)
    for axes, record in zip(panels, records, strict=True):
        size, online = record.bytes_per_token, record.token_s.online
        for speed, colour in ((1.25e9, "#08519c"), (125e6, _ONLINE), (12.5e6, _TOTAL)):
            nbytes, trips = size.up_online + size.down_online, record.model.round_trips
            curve = [token_seconds(online, trips, nbytes, Link(rtt_s=t, bytes_per_s=speed)) for t in times]
            axes.plot(times * 1e3, curve, color=colour, label=f"{speed * 8 / 1e6:,.0f} Mbit/s")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("round-trip time, milliseconds")
        axes.set_title(f"{record.model.name}: {record.model.round_trips} round trips", fontsize=10)
        axes.grid(alpha=0.3, which="both")
        _plain_numbers(axes)
    panels[0].set_ylabel("seconds a token, its row ready")
    _legend(figure, panels, 3)
    return figure


def widths(series: WidthSeries) -> Figure:
    """Seconds a token and overhead against width: measured points, and the formula that fits them."""
    figure = _figure(10.0, 4.4)
    left, right = _panels(figure, 1, 2)
    sizes = [point.model.hidden_size for point in series.points]
    fine = np.geomspace(min(sizes), max(sizes), 60)
    curves = [predicted(series.points, width) for width in fine]
    for name, label, colour, marker in (
        ("total", "veil, total", _TOTAL, "o"),
        ("online", "veil, online", _ONLINE, "s"),
        ("plaintext", "plaintext float32", _PLAIN, "^"),
    ):
        measured = [getattr(point.token_s, name) for point in series.points]
        if any(value is None for value in measured):
            continue
        left.plot(sizes, [value * 1e3 for value in measured], marker, color=colour, label=label)
        left.plot(fine, [getattr(curve, name) * 1e3 for curve in curves], color=colour, linewidth=1)
    left.set_ylabel("milliseconds a token")
    left.set_yscale("log")
    for name, label, colour, marker in (
        ("total", "total / plaintext", _TOTAL, "o"),
        ("online", "online / plaintext", _ONLINE, "s"),
    ):
        if any(point.token_s.plaintext is None for point in series.points):
            continue
        ratios = [getattr(point.token_s, name) / (point.token_s.plaintext or 1.0) for point in series.points]
        right.plot(sizes, ratios, marker, color=colour, label=label)
        right.plot(fine, [getattr(curve, name) / (curve.plaintext or 1.0) for curve in curves], color=colour, linewidth=1)
    right.axhline(1.0, color=_PLAIN, linewidth=0.8, linestyle="--")
    right.set_ylabel("times plaintext")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("hidden size")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, frameon=False)
    _plain_numbers(left, x=False)
    figure.suptitle("points: measured; lines: the formula, fitted phase by phase", fontsize=10)
    return figure


def signal(series: SignalSeries) -> Figure:
    """Decibels of signal to noise of one encrypted layer against its width."""
    figure = _figure(7.0, 4.0)
    (axes,) = _panels(figure, 1, 1)
    places = [point.width for point in series.points]
    axes.plot(places, [point.predicted_db for point in series.points], "-", color=_PLAIN, label="predicted")
    axes.plot(places, [point.measured_db for point in series.points], "o", color=_ONLINE, label="measured")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15 * max(max(point.measured_db, point.predicted_db) for point in series.points))
    axes.set_xlabel("inputs of the layer")
    axes.set_ylabel("signal to noise, decibels")
    axes.grid(alpha=0.3)
    _legend(figure, [axes], 2)
    return figure


OF_RECORDS: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "phases": phases,
    "bytes": sizes,
    "rows": rows,
    "links": links,
}
"""Figures of one or more records; `widths` and `signal` are of a series each."""


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panels(figure: Figure, down: int, across: int) -> list[Axes]:
    made: list[Axes] = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
    return made


def _title(record: Record) -> str:
    ratio = record.ratio.plaintext_total
    return record.model.name + ("" if ratio is None else f": {ratio:.2f} × plaintext")


def _legend_of_phases(figure: Figure, records: Sequence[Record]) -> None:
    from matplotlib.patches import Patch

    shown = {phase.name for record in records for phase in record.phases}

    handles = [
        Patch(facecolor=_COLOURS[name], edgecolor="white", hatch="///" if moment == "offline" else None, label=name)
        for name, (moment, _) in PHASES.items()
        if name in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)


def _legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """One legend below the panels, each label once."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def _plain_numbers(axes: Axes, *, x: bool = True) -> None:
    """Logarithmic axes with numbers at 1, 2 and 5, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis) if x else (axes.yaxis,):
        axis.set_major_locator(LogLocator(subs=(1.0,) if x else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
