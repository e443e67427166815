"""`veil bench`: measure, show tables, write the record and draw a plot; or show and draw records that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from veil.bench import figures, record, report, run, series, subjects
from veil.bench.record import Record
from veil.bench.series import WidthSeries
from veil.commands.terminal import Reporter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STANDARD_OUTPUT = Path("-")
WIDTHS = "widths"


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """The options of one `veil bench`. ``widths`` or ``records`` replace the model."""

    run: run.Request
    widths: tuple[int, ...]
    records: tuple[Path, ...]
    figure: str | None
    json: Path | None
    plot: Path | None


def bench(request: BenchRequest) -> None:
    """Do what was asked.

    Raises `ValueError` for options that do not fit, before any long work, and veil's errors.
    """
    _check(request)
    made = _read(request.records) if request.records else _measured(request)
    series_only = isinstance(made, WidthSeries)
    if request.plot is not None and request.figure is not None and (request.figure == WIDTHS) != series_only:
        raise ValueError(f"--figure {request.figure} does not fit: only a series of widths has the figure {WIDTHS!r}")
    if request.json is not None:
        _write(made if isinstance(made, WidthSeries) else made[0], request.json)
    if request.json != STANDARD_OUTPUT:
        _show(made)
    if request.plot is not None:
        figures.save(_drawn(made, request.figure), request.plot)


def _drawn(made: Sequence[Record] | WidthSeries, figure: str | None) -> Figure:
    return figures.widths(made) if isinstance(made, WidthSeries) else figures.OF_RECORDS[figure or "phases"](made)


def parse_widths(text: str | None) -> tuple[int, ...]:
    """Hidden sizes separated by commas; `ValueError` for anything else."""
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--widths is {text!r}; give whole numbers separated by commas, such as 512,1024,2048") from None


def _check(request: BenchRequest) -> None:
    """Refuse what cannot work before hours are spent on it."""
    if request.plot is not None:
        figures.check(request.plot)
    if request.records and (request.widths or request.json is not None):
        raise ValueError("--from shows and draws records that exist; leave out --widths and --json")
    if not request.records and request.figure is not None and (request.figure == WIDTHS) != bool(request.widths):
        raise ValueError(f"--figure {request.figure} does not fit: --widths and the figure {WIDTHS!r} go together")
    if request.run.install_peer and not request.run.peer:
        raise ValueError("--install-peer makes the environment of --peer; add --peer concrete-ml")
    for width in request.widths:
        subjects.check_width(width)
    if request.widths and request.run.peer:
        raise ValueError("--widths measures veil and plaintext only; leave out --peer")
    if request.widths and request.run.fold_norms != "off":
        raise ValueError("--widths compares with a formula for models as they are; leave out --fold-norms")


def _measured(request: BenchRequest) -> list[Record] | WidthSeries:
    with Reporter() as reporter:
        if request.widths:
            return series.measure(request.run, request.widths, reporter.report)
        return [run.measure(request.run, reporter.report)]


def _read(paths: Sequence[Path]) -> list[Record] | WidthSeries:
    if len(paths) == 1 and series.is_series(paths[0]):
        return record.read(paths[0], WidthSeries)
    return [record.read(path, Record) for path in paths]


def _write(made: Record | WidthSeries, path: Path) -> None:
    if path == STANDARD_OUTPUT:
        typer.echo(record.to_json(made), nl=False)
    else:
        record.write(made, path)


def _show(made: Sequence[Record] | WidthSeries) -> None:
    console = Console()
    for table in [report.widths(made)] if isinstance(made, WidthSeries) else [t for one in made for t in report.tables(one)]:
        console.print(table)
