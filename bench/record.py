"""Records of the project's own measurements that `veil bench` does not make: rows with a unit, a spread and a target."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from veil.bench import machine as host
from veil.bench.record import FORMAT


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row: a value with its unit, its spread over repetitions, and its share of a limit where there is one."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    repetitions: int = 1
    bytes: int | None = None
    share_of_limit: float | None = None
    limit: str = ""
    target: str = ""

    @classmethod
    def of(cls, name: str, samples: list[float], unit: str, **more: Any) -> Measurement:
        """The median of some samples, with their least and largest."""
        middle = statistics.median(samples)
        return cls(name=name, value=middle, unit=unit, low=min(samples), high=max(samples), repetitions=len(samples), **more)


@dataclass(kw_only=True)
class Record:
    """A run of one benchmark program."""

    benchmark: str
    parameters: dict[str, Any]
    machine: str = field(default_factory=host.name)
    commit: str = field(default_factory=host.commit)
    rows: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT

    def add(self, row: Measurement) -> None:
        """Append a row."""
        self.rows.append(row)

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file; `ValueError` for one of another format."""
        value = json.loads(path.read_text())
        if value.get("format") != FORMAT:
            raise ValueError(f"{path} has format {value.get('format')!r}, expected {FORMAT}")
        return cls(**value | {"rows": [Measurement(**row) for row in value["rows"]]})

    def value(self, name: str) -> float:
        """The value of the row of this name; `KeyError` without one."""
        return {row.name: row.value for row in self.rows}[name]

    def show(self) -> None:
        """Print the rows as a table."""
        table = Table(title=f"{self.benchmark} · {self.machine} · {self.commit}")
        for column in ("what", "median", "low … high", "share of limit", "target"):
            table.add_column(column)
        for row in self.rows:
            spread = "" if row.low is None else f"{row.low:.4g} … {row.high:.4g}"
            share = "" if row.share_of_limit is None else f"{row.share_of_limit:.0%} of {row.limit}"
            table.add_row(row.name, f"{row.value:.4g} {row.unit}", spread, share, row.target)
        console = Console(width=150)
        console.print(table)
        for note in self.notes:
            console.print(note)
