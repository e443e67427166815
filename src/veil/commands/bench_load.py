"""`veil bench load`: measure or read a record, show tables, write the record and draw the plot."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from veil.bench import figures, files, load_report, load_shapes
from veil.bench.load import LoadRequest, measure
from veil.bench.load_record import LoadSeries
from veil.commands.terminal import Reporter

STANDARD_OUTPUT = Path("-")


def load(request: LoadRequest, *, record: Path | None, json: Path | None, plot: Path | None) -> None:
    """Do what was asked. Raises `ValueError` for options that do not fit, before any long work, and veil's errors."""
    if plot is not None:
        figures.check(plot)
    if record is None and request.server is None and request.model not in load_shapes.MODELS:
        raise ValueError(f"there are no shapes of {request.model!r}; there are those of {', '.join(load_shapes.MODELS)}")
    series = files.read(record, LoadSeries) if record is not None else _measured(request)
    if json == STANDARD_OUTPUT:
        typer.echo(files.to_json(series), nl=False)
    else:
        if json is not None:
            files.write(series, json)
        for table in load_report.tables(series):
            Console().print(table)
    if plot is not None:
        figures.save(load_report.figure(series), plot)


def parse_times(option: str, text: str) -> tuple[float, ...]:
    """Milliseconds from 0 to 10,000, separated by commas; `ValueError` for anything else."""
    try:
        times = tuple(float(part) for part in text.split(","))
    except ValueError:
        times = ()
    if not times or not all(0 <= time <= 10_000 for time in times):
        raise ValueError(f"{option} is {text!r}; give milliseconds, separated by commas, such as 0,20")
    return times


def _measured(request: LoadRequest) -> LoadSeries:
    with Reporter() as reporter:
        return measure(request, reporter.report)
