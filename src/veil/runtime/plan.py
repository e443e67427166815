"""What a forward pass asks of the server: which groups, in which order, with how many rows. Fixed before a row is sent.

A plan follows from the pass's shape and from nothing in it: it is made by a rehearsal with zeros. The pass then takes its
steps in that order, one by one, and a call that does not fit is refused before it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from veil.bundle.manifest import Manifest
from veil.errors import UnevenTraffic

Count = Literal["each", "earlier", "last", "kept", "encoder", "context"]
Call = tuple[int, int, "int | None"]
"""A group, its rows, and how many outputs are asked for (None: all)."""

_SMOOTHING = 0.25


@dataclass(frozen=True)
class Shape:
    """A pass of ``sequences`` with ``length`` rows each, of which logits of the last ``kept`` are wanted (0: of all).

    ``encoder`` are the rows of an encoder's output, each, ``past`` those that a cache holds of earlier passes.
    """

    sequences: int
    length: int
    encoder: int = 0
    kept: int = 0
    past: int = 0

    def rows(self, count: Count) -> int:
        """The rows of a step."""
        kept = min(self.kept or self.length, self.length)
        each = {"each": self.length, "earlier": self.length - 1, "last": 1, "kept": kept, "encoder": self.encoder}
        each["context"] = self.past + self.length
        return self.sequences * each[count]


@dataclass(frozen=True)
class PlannedCall:
    """One call of a plan; ``rows`` is a number where no rule was found for it."""

    group: int
    slots: int | None
    rows: Count | int

    def call(self, shape: Shape | None) -> Call:
        """The call in a pass of this shape."""
        if isinstance(self.rows, int):
            return self.group, self.rows, self.slots
        assert shape is not None
        return self.group, shape.rows(self.rows), self.slots


@dataclass(eq=False)
class Plan:
    """The steps of a pass, and how long this side takes before each, after the answer before it, as seen lately."""

    steps: tuple[PlannedCall, ...]
    gaps_s: list[float] = field(default_factory=list)
    trains: dict[int, bool] = field(default_factory=dict)
    """For each step, by its place: whether a gradient is asked for on the way back, as the first pass had it."""
    _known: tuple[Shape | None, list[Call]] | None = None

    @cached_property
    def by_rule(self) -> bool:
        """Whether it holds for every length of its kind."""
        return not any(isinstance(step.rows, int) for step in self.steps)

    @cached_property
    def grows(self) -> bool:
        """Whether a call has the rows of all passes so far, as where keys are computed anew from what a cache holds."""
        return any(step.rows == "context" for step in self.steps)

    def calls(self, shape: Shape | None) -> list[Call]:
        """The calls of a pass of this shape."""
        if self._known is None or self._known[0] != shape:
            self._known = shape, [step.call(shape) for step in self.steps]
        return self._known[1]

    def took(self, gaps_s: Sequence[float]) -> None:
        """Learn from a pass how long this side takes between answers and calls."""
        if len(gaps_s) == len(self.steps):
            old = self.gaps_s or list(gaps_s)
            self.gaps_s = [was + _SMOOTHING * (new - was) for new, was in zip(gaps_s, old, strict=True)]

    @classmethod
    def of(cls, calls: Sequence[Call], shape: Shape | None) -> Plan:
        """The plan of a rehearsal's calls: by rule if each call's rows are one of its ``shape``'s counts, else by number."""
        steps = tuple(PlannedCall(group, slots, _rule(rows, shape)) for group, rows, slots in calls)
        if any(isinstance(step.rows, int) for step in steps):
            steps = tuple(PlannedCall(group, slots, rows) for group, rows, slots in calls)
        return cls(steps)


def _rule(rows: int, shape: Shape | None) -> Count | int:
    if shape is None:
        return rows
    counts: tuple[Count, ...] = ("last", "each", "earlier", "kept", "encoder", "context")
    return next((count for count in counts if shape.rows(count) == rows), rows)


class Course:
    """One pass on its way through a plan.

    ``open_groups`` may be asked at any time: the user allowed what that shows. With ``fills`` a call may have fewer rows
    than are due; the others are filled with zeros.
    """

    def __init__(
        self,
        plan: Plan,
        shape: Shape | None,
        manifest: Manifest,
        open_groups: frozenset[int],
        *,
        fills: bool,
        since: float | None = None,
    ) -> None:
        self._plan = plan
        self._calls = plan.calls(shape)
        self._manifest = manifest
        self._open = open_groups
        self.fills = fills
        self._next = 0
        self.last_answer = since
        self._gaps_s: list[float] = []
        self.broken = False
        """Whether the server cannot be asked any more, or nobody wants it to be."""

    @property
    def place(self) -> int:
        """The place in the plan of the call that is under way."""
        return self._next

    @property
    def trains(self) -> dict[int, bool]:
        """See `Plan`."""
        return self._plan.trains

    @property
    def calls(self) -> list[Call]:
        """All calls of the pass."""
        return self._calls

    def is_open(self, group: int) -> bool:
        """Whether the user allowed what calls of a group show."""
        return group in self._open

    def rows(self, group: int, rows: int, slots: int | None) -> int:
        """How many rows to send for a call of so many; `UnevenTraffic` for a call that the plan does not have here."""
        if group in self._open:
            return rows
        due = self._calls[self._next] if self._next < len(self._calls) else None
        if due is None or due[0] != group or due[2] != slots:
            name = "nothing" if due is None else self._manifest.groups[due[0]].name
            raise uneven(f"{self._manifest.groups[group].name} was called where {name} was due")
        if rows > due[1] or (rows < due[1] and not self.fills):
            raise uneven(f"{self._manifest.groups[group].name} was called for {rows} rows where {due[1]} were due")
        if self.last_answer is not None:
            self._gaps_s.append(time.perf_counter() - self.last_answer)
        return due[1]

    def answered(self, group: int) -> None:
        """Go on to the next call."""
        if group not in self._open:
            self._next += 1
            self.last_answer = time.perf_counter()

    @property
    def left(self) -> list[tuple[Call, float]]:
        """The calls that are still due, and the seconds before each."""
        gaps = self._plan.gaps_s or [0.0] * len(self._calls)
        return list(zip(self._calls, gaps, strict=True))[self._next :]

    def over(self) -> None:
        """Note that the pass ended; `UnevenTraffic` if it left something out."""
        if self._next < len(self._calls):
            raise uneven(f"{self._manifest.groups[self._calls[self._next][0]].name} was left out")
        self._plan.took(self._gaps_s)


def uneven(what: str) -> UnevenTraffic:
    """The error for traffic that would show the server something."""
    return UnevenTraffic(
        f"what this model asks the server depends on the text: {what}; the pass ends with rows of zeros, so that this does "
        "not show. Distrust who made the model; a mixture of experts can be allowed by name, with --expert-leak reveal"
    )
