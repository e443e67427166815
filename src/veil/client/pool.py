"""Rows ready for use, in lines of batches, and which batch each group takes its next rows from.

The *prompt* line holds batches without the head, for prompt rows; the *full* line holds batches for rows that need logits;
the *back* line, of a model compiled for training, those for gradients.
Each group takes the oldest rows of a line that it has not used. At the start of a forward pass the groups are brought
level, so that a layer that was skipped, or called twice, does not hold rows back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from veil.bundle.manifest import Manifest
from veil.crypto.batch import RowBatch

_FOR_EVER = float("inf")


@dataclass(eq=False, slots=True)
class Part:
    """Rows of a batch that were taken: ``count`` from row ``first``."""

    batch: RowBatch
    first: int
    count: int


class _Line:
    """Batches for the groups of some segments; ``leading`` groups are those that every pass asks."""

    def __init__(self, groups: Sequence[int], leading: Sequence[int]) -> None:
        self._groups = list(groups)
        self._leading = [group for group in leading if group in self._groups] or self._groups
        self._batches: deque[tuple[float, RowBatch]] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def _each(self) -> Iterator[RowBatch]:
        return (batch for _, batch in self._batches)

    def ready(self, group: int) -> int:
        if group not in self._groups:
            return 0
        return sum(batch.rows - batch.taken(group) for batch in self._each())

    def unused(self) -> int:
        """Rows that no group has used."""
        return sum(batch.rows - max(batch.taken(group) for group in self._groups) for batch in self._each())

    def add(self, batches: Sequence[RowBatch], now: float) -> None:
        self._batches.extend((now, batch) for batch in batches)

    def take(self, group: int, count: int) -> list[Part]:
        parts = []
        for batch in self._each():
            own = min(count, batch.rows - batch.taken(group))
            if own:
                parts.append(Part(batch, batch.take(group, own), own))
                count -= own
            if not count:
                break
        return parts

    def take_one(self, group: int) -> Part | None:
        for _, batch in self._batches:
            if batch.taken(group) < batch.rows:
                return Part(batch, batch.take(group, 1), 1)
        return None

    def take_level(self, groups: Sequence[int]) -> Part | None:
        for batch in self._each():
            places = {batch.taken(group) for group in groups}
            if places == {batch.rows}:
                continue
            if len(places) != 1:
                return None
            return Part(batch, max(batch.take(group, 1) for group in groups), 1)
        return None

    def level(self) -> list[int]:
        """Bring the groups level and drop batches that the furthest leading group has passed; their numbers."""
        for batch in self._each():
            floor = max(map(batch.taken, self._leading))
            if not floor:  # groups take the oldest rows, so nobody has used a later batch
                break
            for group in self._groups:
                batch.skip(group, floor)
        dropped = []
        while self._batches and self._batches[0][1].taken(self._leading[0]) == self._batches[0][1].rows:
            dropped.append(self._batches.popleft()[1].number)
        return dropped

    def drop_older(self, than: float) -> list[int]:
        dropped = []
        while self._batches and self._batches[0][0] < than:
            dropped.append(self._batches.popleft()[1].number)
        return dropped

    def clear(self) -> None:
        self._batches.clear()


@dataclass(frozen=True)
class Missing:
    """Rows that a call lacks, by line."""

    prompt: int
    full: int
    back: int = 0

    def __bool__(self) -> bool:
        return self.prompt > 0 or self.full > 0 or self.back > 0


class RowPool:
    """Prepared rows of one session at a time. Thread safe; ``changed`` is notified, under ``lock``, when rows come.

    ``take`` spends what it hands out. Batches older than ``keep_s`` are not used: the server forgot them. The lock is taken
    itself, not by ``changed``, whose steps in Python take twice as long, and where Ctrl-C would leave it taken.
    """

    def __init__(self, manifest: Manifest, clock: Callable[[], float] = time.monotonic) -> None:
        groups = range(len(manifest.forward))
        back = sorted(manifest.back.values())
        body = [group for group in groups if manifest.groups[group].segment == "body"]
        self._prompt, self._full, self._back = _Line(body, body), _Line(groups, body), _Line(back, back)
        self._back_groups = frozenset(back)
        self._clock = clock
        self.session = ""
        self.keep_s = float("inf")
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._dropped: list[int] = []

    def start_session(self, session: str, keep_s: float = float("inf")) -> None:
        """Forget every row (each stays spent for ever); batches that come now are of this session."""
        with self.lock:
            self._prompt.clear()
            self._full.clear()
            self._back.clear()
            self._dropped = []
            self.session, self.keep_s = session, keep_s
            self.changed.notify_all()

    def add(self, session: str, batches: Sequence[RowBatch], *, full: bool = False, back: bool = False) -> bool:
        """Append batches of a session to a line; False, and nothing is added, if that session is over."""
        with self.lock:
            if session != self.session:
                return False
            (self._back if back else self._full if full else self._prompt).add(batches, self._clock())
            self.changed.notify_all()
            return True

    def unused(self, *, full: bool) -> int:
        """Rows of a line that no group has used."""
        with self.lock:
            self._expire()
            return (self._full if full else self._prompt).unused()

    @property
    def batch_count(self) -> int:
        """Batches that are kept, of all lines."""
        with self.lock:
            return sum(len(line) for line in (self._prompt, self._full, self._back))

    @property
    def unused_back(self) -> int:
        """Rows for gradients that no group has used."""
        with self.lock:
            self._expire()
            return self._back.unused()

    def missing(self, group: int, rows: int, prompt_rows: int) -> Missing:
        """What `take` with the same arguments lacks. Of ``rows``, up to ``prompt_rows`` may come from the prompt line."""
        with self.lock:
            self._expire()
            if group in self._back_groups:
                return Missing(0, 0, max(0, rows - self._back.ready(group)))
            prompt, full = self._prompt.ready(group), self._full.ready(group)
            wanted_full = rows - min(prompt_rows, rows)
            lacks = max(0, rows - min(prompt, prompt_rows) - full)
            short_full = max(0, wanted_full - full)
            return Missing(max(0, lacks - short_full), short_full)

    def take(self, group: int, rows: int, prompt_rows: int) -> tuple[str, list[Part]] | None:
        """The session and the next rows for a group, spent for it, from the prompt line first; None if short."""
        with self.lock:
            if self.keep_s != _FOR_EVER:
                self._expire()
            if group in self._back_groups:
                return (self.session, self._back.take(group, rows)) if self._back.ready(group) >= rows else None
            if rows == 1 and not prompt_rows:  # the step of decoding, a hundred times a token
                part = self._full.take_one(group)
                return None if part is None else (self.session, [part])
            first = min(prompt_rows, self._prompt.ready(group), rows)
            if self._full.ready(group) < rows - first:
                return None
            return self.session, self._prompt.take(group, first) + self._full.take(group, rows - first)

    def take_level(self, groups: Sequence[int]) -> Part | None:
        """The full line's row that all these groups have next, spent for each; None if there is no such row."""
        with self.lock:
            self._expire()
            return self._full.take_level(groups)

    def level(self) -> tuple[str, list[int]]:
        """Start a forward pass; the session, and the numbers of batches that will not be used again."""
        with self.lock:
            self._expire()
            gone = self._dropped + self._prompt.level() + self._full.level() + self._back.level()
            self._dropped = []
            return self.session, gone

    def _expire(self) -> None:
        if self.keep_s == _FOR_EVER:
            return
        before = self._clock() - self.keep_s
        lines = (self._prompt, self._full, self._back)
        self._dropped += [number for line in lines for number in line.drop_older(before)]
