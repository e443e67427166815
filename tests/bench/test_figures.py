"""Every figure renders from real records, in both formats, with its labels and units; what cannot be drawn is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veil.bench import figures
from veil.bench.record import Peer, Record, SignalPoint, SignalSeries, WidthPoint, WidthSeries

UNITS = {
    "phases": "milliseconds a token",
    "bytes": "megabytes a token",
    "rows": "rows of the prompt",
    "links": "milliseconds",
}


def texts(figure: object) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def with_peer(record: Record) -> Record:
    other = Peer(name="other", version="1", token_s=9.0, bytes_per_token=5e5, key_bytes=1, layers=())
    return replace(record, peer=other, bytes_per_token=replace(record.bytes_per_token, peer=5e5))


@pytest.mark.parametrize("suffix", figures.FORMATS)
@pytest.mark.parametrize("name", list(figures.OF_RECORDS))
def test_figures_of_records_are_drawn(name: str, suffix: str, tiny_record: Record, tmp_path: Path) -> None:
    path = tmp_path / "plots" / f"{name}{suffix}"
    figure = figures.OF_RECORDS[name]([tiny_record, with_peer(tiny_record)])
    figures.save(figure, path)
    start = path.read_bytes()[:8]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else start.startswith(b"<?xml")
    words = texts(figure)
    assert UNITS[name] in words and "tiny" in words
    if name == "phases":
        assert all(phase.name in words for phase in tiny_record.phases)
        assert "plaintext" in words
    if name == "bytes":
        assert "other 1" in words and words.count("clear float32") == 1


def test_the_same_record_gives_the_same_svg(tiny_record: Record, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        figures.save(figures.phases([tiny_record]), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def series_of(record: Record, sizes: tuple[int, ...]) -> WidthSeries:
    points = tuple(
        WidthPoint(
            model=replace(record.model, hidden_size=size),
            token_s=record.token_s,
            ratio=record.ratio,
            prompts=record.prompts,
            phases=record.phases,
            highest_bytes=1,
        )
        for size in sizes
    )
    return WidthSeries(commit="c", versions={}, machine=record.machine, settings=record.settings, points=points)


@pytest.mark.parametrize("plaintext", [True, False])
def test_widths_are_drawn_with_and_without_plaintext(tiny_record: Record, plaintext: bool, tmp_path: Path) -> None:
    record = tiny_record
    if not plaintext:
        record = replace(record, token_s=replace(record.token_s, plaintext=None))
    figure = figures.widths(series_of(record, (256, 512, 1024)))
    figures.save(figure, tmp_path / "widths.png")
    words = texts(figure)
    assert "hidden size" in words and "milliseconds a token" in words and "fitted phase by phase" in words
    assert ("plaintext float32" in words) == plaintext


def test_signal_by_width_is_drawn(tmp_path: Path) -> None:
    point = SignalPoint(
        width=512,
        slots=64,
        rows=64,
        input_bits=22,
        result_bits=12,
        measured_db=46.1,
        predicted_db=46.0,
        largest_slot_db=47.0,
        error_ratio=1.0,
    )
    points = (point, replace(point, width=28672))
    figure = figures.signal(SignalSeries(commit="c", versions={}, device="cpu", parameters={}, points=points))
    figures.save(figure, tmp_path / "signal.png")
    words = texts(figure)
    assert all(word in words for word in ("decibels", "512", "28672", "measured", "predicted"))


def test_no_texts_of_a_figure_overlap(tiny_record: Record) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for draw in figures.OF_RECORDS.values():
        figure = draw([tiny_record, with_peer(tiny_record)])
        canvas: Any = FigureCanvasAgg(figure)  # untyped
        canvas.draw()
        boxes = []
        for axes in figure.axes:
            for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
                if text.get_text():
                    boxes.append(text.get_window_extent(canvas.get_renderer()))
        boxes += [legend.get_window_extent(canvas.get_renderer()) for legend in figure.legends]
        width, height = canvas.get_width_height()
        for index, box in enumerate(boxes):
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_other_formats_and_a_missing_matplotlib_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        figures.check(Path("plot.pdf"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(figures.PlotsUnavailable, match="pip install"):
        figures.check(Path("plot.png"))
