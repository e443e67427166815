"""How many rows an owner may have multiplied by one layer in a day: as many as a layer is wide, and its weights are known.

Counts are written offline in blocks, so that a server that is killed gives nobody rows back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from veil.bundle.fingerprint import fingerprint_of
from veil.disk import write_whole
from veil.errors import QuotaExceeded

if TYPE_CHECKING:
    from veil.bundle.server_half import ServerModel

_BLOCKS = 64
"""Writes a day for a layer that uses up its rows; after a restart up to one block counts as used."""


def utc_now() -> datetime:
    """The time in UTC, where days begin."""
    return datetime.now(timezone.utc)


class HasModel(Protocol):
    """What multiplies by a model's weights; an engine, to all that counting looks at."""

    @property
    def model(self) -> ServerModel:
        """The weights and what they are of."""


class RowBudget:
    """Counts rows by owner, bundle and group, from midnight to midnight UTC, in a file that outlives the server.

    Who shows no token is one owner with all others. ``refused`` counts rows that were not multiplied. Thread safe.
    `ValueError` for a file that cannot be used.
    """

    def __init__(self, rows_per_day: int, path: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self.rows_per_day = rows_per_day
        self.refused = 0
        self._path = path
        self._clock = clock
        self._block = max(1, rows_per_day // _BLOCKS)
        self._lock = threading.Lock()
        self._names: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        self._used: dict[tuple[str, str], list[int]] = {}
        self._written: dict[tuple[str, str], list[int]] = {}
        self._day = self._today()
        self._read()
        self._write()

    @property
    def most_used(self) -> int:
        """Rows that the busiest owner had of one layer today."""
        with self._lock:
            return max((max(counts, default=0) for counts in self._used.values()), default=0)

    def spend(self, owner: str, engine: HasModel, group: int, rows: int) -> None:
        """Count rows before they are multiplied; `QuotaExceeded` says when there are more."""
        with self._lock:
            self._renew()
            key = owner, self._name(engine)
            groups = len(engine.model.manifest.groups)
            used = self._used.setdefault(key, [0] * groups)
            if used[group] + rows > self.rows_per_day:
                self.refused += rows
                again = datetime.combine(self._clock().date() + timedelta(days=1), datetime.min.time())
                whose = "your token" if owner else "all callers together"
                raise QuotaExceeded(
                    f"the server allows {whose} {self.rows_per_day} rows a day, {used[group]} are used and {rows} more were "
                    f"asked for; there are more from {again:%Y-%m-%d %H:%M} UTC on"
                )
            used[group] += rows
            written = self._written.setdefault(key, [0] * groups)
            if used[group] > written[group]:
                written[group] = min(self.rows_per_day, used[group] + self._block)
                for other in range(groups):  # the others of a pass follow: one write for all
                    written[other] = max(written[other], min(self.rows_per_day, used[other] + self._block))
                self._write()

    def _today(self) -> str:
        return f"{self._clock():%Y-%m-%d}"

    def _renew(self) -> None:
        today = self._today()
        if today > self._day:
            self._day, self._used, self._written = today, {}, {}

    def _name(self, engine: HasModel) -> str:
        if engine not in self._names:
            model = engine.model
            self._names[engine] = fingerprint_of(model.params, model.seed, model.manifest)
        return self._names[engine]

    def _read(self) -> None:
        try:
            held = json.loads(self._path.read_text("utf-8"))
            if held["day"] >= self._day:
                self._day = str(held["day"])
                for owner, bundle, counts in held["rows"]:
                    self._used[str(owner), str(bundle)] = [int(count) for count in counts]
                self._written = {key: list(counts) for key, counts in self._used.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self._path} cannot be read; check it, or remove it, which gives everybody a new day"
            ) from None

    def _write(self) -> None:
        rows = [[owner, bundle, counts] for (owner, bundle), counts in self._written.items()]
        try:
            write_whole(self._path, json.dumps({"day": self._day, "rows": rows}).encode(), mode=0o600)
        except OSError as error:
            raise ValueError(f"{self._path} cannot be written ({error.strerror}); check the folder") from None
