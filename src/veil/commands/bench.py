"""`veil bench`: measure, show tables, write the record and draw a plot; or show and draw records that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from veil.bench import figures, files, load_report, precision, report, run, series, subjects
from veil.bench.files import AnyRecord
from veil.bench.load_record import LoadSeries
from veil.bench.record import Record, SignalSeries, WidthSeries
from veil.commands.terminal import Reporter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STANDARD_OUTPUT = Path("-")
SERIES = ("widths", "signal", "load")
"""Figures of a series, each with the option that measures it."""


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """The options of one `veil bench`. ``widths``, ``signal`` or ``records`` replace the model."""

    run: run.RunRequest
    widths: tuple[int, ...]
    signal: bool
    records: tuple[Path, ...]
    figure: str | None
    json: Path | None
    plot: Path | None


def bench(request: BenchRequest) -> None:
    """Do what was asked.

    Raises `ValueError` for options that do not fit, before any long work, and veil's errors.
    """
    _check(request)
    made = [files.read_any(path) for path in request.records] or [_measured(request)]
    kinds = {one.kind for one in made}
    if request.plot is not None and (len(kinds) > 1 or (kinds <= set(SERIES) and len(made) > 1)):
        raise ValueError("a figure is of records of models, or of one series; name those with --from")
    if request.plot is not None and request.figure not in (None, *_figures_of(made[0])):
        raise ValueError(f"--figure {request.figure} does not fit; this record has {', '.join(_figures_of(made[0]))}")
    if request.json == STANDARD_OUTPUT:
        typer.echo(files.to_json(made[0]), nl=False)
    else:
        if request.json is not None:
            files.write(made[0], request.json)
        console = Console()
        for table in [table for one in made for table in report.tables(one)]:
            console.print(table)
    if request.plot is not None:
        figures.save(_drawn(made, request.figure), request.plot)


def parse_numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Whole numbers from 1 on, separated by commas; `ValueError` for anything else."""
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{option} is {text!r}; give whole numbers from 1 on, separated by commas, such as 512,1024,2048")
    return numbers


def _figures_of(made: AnyRecord) -> tuple[str, ...]:
    return tuple(figures.OF_RECORDS) if isinstance(made, Record) else (made.kind,)


def _drawn(made: Sequence[AnyRecord], figure: str | None) -> Figure:
    first = made[0]
    if isinstance(first, WidthSeries):
        return figures.widths(first)
    if isinstance(first, LoadSeries):
        return load_report.figure(first)
    if isinstance(first, SignalSeries):
        return figures.signal(first)
    return figures.OF_RECORDS[figure or "phases"]([one for one in made if isinstance(one, Record)])


def _check(request: BenchRequest) -> None:
    """Refuse what cannot work before hours are spent on it."""
    run_ = request.run
    if request.plot is not None:
        figures.check(request.plot)
    if request.records:
        if request.widths or request.signal or request.json is not None:
            raise ValueError("--from shows and draws records that exist; leave out --widths, --signal and --json")
        return
    kind = "signal" if request.signal else "widths" if request.widths else None
    if request.figure is not None and (kind or request.figure in SERIES) and request.figure != kind:
        raise ValueError(f"--figure {request.figure} does not fit: a series has its own figure, and no other record has it")
    if run_.install_peer and not run_.peer:
        raise ValueError("--install-peer makes the environment of --peer; add --peer concrete-ml")
    if request.signal:
        if run_.plaintext or run_.peer or run_.busy:
            raise ValueError("--signal measures no time; leave out --plaintext, --peer and --busy")
        return
    for width in request.widths:
        subjects.check_width(width)
    if request.widths and run_.peer:
        raise ValueError("--widths measures veil and plaintext only; leave out --peer")
    if request.widths and run_.fuse_norms != "off":
        raise ValueError("--widths compares with a formula for models as they are; leave out --fuse-norms")


def _measured(request: BenchRequest) -> AnyRecord:
    with Reporter() as reporter:
        if request.signal:
            return precision.measure(request.run.device, request.widths or precision.WIDTHS, reporter.report)
        if request.widths:
            return series.measure(request.run, request.widths, reporter.report)
        return run.measure(request.run, reporter.report)
