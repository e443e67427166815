"""Masks in the order in which they were made, in two lines, and how far each group has used them.

The *prompt* line holds masks without the head, for prompt rows; the *full* line holds masks for rows that need logits.
Each group takes the oldest masks of a line that it has not used. At the start of a forward pass the groups are brought
level, so that a layer that was skipped, or called twice, does not hold masks back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from veil.crypto.mask import ClientMask
from veil.model.manifest import Manifest


class _Line:
    """Masks for the groups of some segments; a group's place only moves forward."""

    def __init__(self, groups: Sequence[int], leading: Sequence[int]) -> None:
        self._next = dict.fromkeys(groups, 0)
        self._leading = [group for group in leading if group in self._next] or list(groups)
        self._masks: deque[tuple[float, ClientMask]] = deque()
        self._first = 0

    def __len__(self) -> int:
        return len(self._masks)

    def ready(self, group: int) -> int:
        if group not in self._next:
            return 0
        return self._first + len(self._masks) - max(self._next[group], self._first)

    def unused(self) -> int:
        """Masks that no group has used."""
        return self._first + len(self._masks) - max([self._first, *self._next.values()])

    def add(self, masks: Sequence[ClientMask], now: float) -> None:
        self._masks.extend((now, mask) for mask in masks)

    def take(self, group: int, count: int) -> list[ClientMask]:
        start = max(self._next[group], self._first)
        taken = [self._masks[start - self._first + offset][1] for offset in range(count)]
        self._next[group] = start + count
        for mask in taken:
            mask.spend(group)
        return taken

    def take_level(self, groups: Sequence[int]) -> ClientMask | None:
        places = {max(self._next[group], self._first) for group in groups}
        place = min(places, default=self._first)
        if len(places) != 1 or place - self._first >= len(self._masks):
            return None
        mask = self._masks[place - self._first][1]
        for group in groups:
            self._next[group] = place + 1
            mask.spend(group)
        return mask

    def level(self) -> list[int]:
        """Bring the groups level and drop masks that the furthest leading group has passed; their numbers."""
        floor = self._place()
        self._next = {group: max(place, floor) for group, place in self._next.items()}
        dropped = []
        while self._masks and self._first < floor:
            dropped.append(self._masks.popleft()[1].number)
            self._first += 1
        return dropped

    def drop_older(self, than: float) -> list[int]:
        dropped = []
        while self._masks and self._masks[0][0] < than:
            dropped.append(self._masks.popleft()[1].number)
            self._first += 1
        return dropped

    def clear(self) -> None:
        self._first += len(self._masks)
        self._masks.clear()

    def _place(self) -> int:
        return max((self._next[group] for group in self._leading), default=0)


@dataclass(frozen=True)
class Missing:
    """Masks that a call lacks, by line."""

    prompt: int
    full: int

    def __bool__(self) -> bool:
        return self.prompt > 0 or self.full > 0


class MaskPool:
    """Prepared masks of one session at a time. Thread safe; ``changed`` is notified when masks come.

    ``take`` marks what it hands out as spent. Masks older than ``keep_s`` are not handed out: the server forgot them.
    """

    def __init__(self, manifest: Manifest, clock: Callable[[], float] = time.monotonic) -> None:
        groups = range(len(manifest.groups))
        body = [group for group in groups if manifest.groups[group].segment == "body"]
        self._prompt, self._full = _Line(body, body), _Line(groups, body)
        self._clock = clock
        self.session = ""
        self.keep_s = float("inf")
        self.changed = threading.Condition(threading.RLock())
        self._dropped: list[int] = []

    def start_session(self, session: str, keep_s: float = float("inf")) -> None:
        """Forget every mask (each stays spent for ever); masks that come now are of this session."""
        with self.changed:
            self.clear()
            self._dropped = []
            self.session, self.keep_s = session, keep_s
            self.changed.notify_all()

    def clear(self) -> None:
        """Forget every mask of the session; each stays spent for ever."""
        with self.changed:
            self._prompt.clear()
            self._full.clear()

    def add(self, session: str, masks: Sequence[ClientMask], *, full: bool) -> bool:
        """Append masks of a session to a line; False, and nothing is added, if that session is over."""
        with self.changed:
            if session != self.session:
                return False
            (self._full if full else self._prompt).add(masks, self._clock())
            self.changed.notify_all()
            return True

    def unused(self, *, full: bool) -> int:
        """Masks of a line that no row has used."""
        with self.changed:
            self._expire()
            return (self._full if full else self._prompt).unused()

    def missing(self, group: int, rows: int, prompt_rows: int) -> Missing:
        """What `take` with the same arguments lacks. Of ``rows``, up to ``prompt_rows`` may come from the prompt line."""
        with self.changed:
            self._expire()
            prompt, full = self._prompt.ready(group), self._full.ready(group)
            wanted_full = rows - min(prompt_rows, rows)
            lacks = max(0, rows - min(prompt, prompt_rows) - full)
            short_full = max(0, wanted_full - full)
            return Missing(lacks - short_full, short_full)

    def take(self, group: int, rows: int, prompt_rows: int) -> tuple[str, list[ClientMask]] | None:
        """The session and the next masks for a group, marked spent for it, from the prompt line first; None if short."""
        with self.changed:
            self._expire()
            first = min(prompt_rows, self._prompt.ready(group), rows)
            if self._full.ready(group) < rows - first:
                return None
            taken = self._prompt.take(group, first) if first else []
            return self.session, taken + self._full.take(group, rows - first)

    def take_level(self, groups: Sequence[int]) -> ClientMask | None:
        """The full line's mask that all these groups have next, marked spent for each; None if there is no such mask."""
        with self.changed:
            self._expire()
            return self._full.take_level(groups)

    def level(self) -> tuple[str, list[int]]:
        """Start a forward pass; the session, and the numbers of masks that will not be used again."""
        with self.changed:
            self._expire()
            gone = self._dropped + self._prompt.level() + self._full.level()
            self._dropped = []
            return self.session, gone

    def _expire(self) -> None:
        before = self._clock() - self.keep_s
        self._dropped += self._prompt.drop_older(before) + self._full.drop_older(before)
