"""What a training pass asks besides: gradients on the way back, and what is recomputed there. Fixed by the calls before it.

A pass forward follows its plan. On its way back the transposed group of each of its calls that trains is asked, last call
first, with as many rows; which calls train, the first pass of a kind fixes. A call that autograd does not reach, because a
loss leaves it out, is asked with rows of zeros: so the server sees one and the same order whatever a loss is made of. What
activation checkpointing recomputes has to be a stretch of a pass that was made before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from veil.bundle.manifest import Manifest
from veil.runtime.plan import Call, Course, uneven

Tensor = torch.Tensor
Send = Callable[[int, Tensor], Tensor]
"""A transposed group's outputs for rows of gradients, sent as they are."""


@dataclass(frozen=True)
class _Due:
    """A call whose gradient is due: its transposed group, the rows that are sent for it, and what sends them."""

    group: int
    rows: int
    send: Send


class WayBack:
    """The way back of one pass: made by `note` while it goes forward, walked by `ask`.

    Autograd's own order is that of the calls, reversed; another one is refused.
    """

    def __init__(self, manifest: Manifest, ways: Ways) -> None:
        self._manifest = manifest
        self._ways = ways
        self._due: list[_Due] = []
        self._left = 0
        self._device = torch.device("cpu")
        self.task: int | None = None
        """Autograd's number for the walk that is under way."""

    def note(self, course: Course | Stretch, group: int, rows: int, trains: bool, send: Send) -> int:
        """Note the call that is under way, before it is sent; its number for `ask`.

        `UnevenTraffic` if it trains and did not in the first pass of its kind.
        """
        fixed = course.trains.setdefault(course.place, trains)
        if trains and not fixed:
            raise uneven(
                f"{self._manifest.groups[group].name} would be asked for a gradient, which earlier passes of this kind did "
                "not want (after a change of your own, choose the mode again with set_fhe_mode)"
            )
        if fixed:
            self._due.append(_Due(self._manifest.back[group], rows, send))
        return len(self._due) - 1

    def ask(self, number: int, gradient: Tensor) -> Tensor:
        """The gradient [R, width] float32 by a call's inputs, for that by its outputs [R, rows], after those before it."""
        task = torch._C._current_graph_task_id()
        self._ways.walks(self, task)
        if task != self.task:
            self.finish()
            self.task, self._left, self._device = task, len(self._due), gradient.device
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self.finish)
        due = self._due[number]
        if number >= self._left:
            raise uneven(f"{self._manifest.groups[due.group].name} was asked for out of turn")
        self._fill(number + 1)
        self._left = number
        own = len(gradient)
        if own < due.rows:
            gradient = torch.cat([gradient, gradient.new_zeros(due.rows - own, gradient.shape[1])])
        return due.send(due.group, gradient)[:own]

    def finish(self) -> None:
        """Ask what is left of a walk, with rows of zeros; nothing where none is under way."""
        if self.task is not None:
            self.task = None
            self._fill(0)

    def _fill(self, down_to: int) -> None:
        while self._left > down_to:
            self._left -= 1
            due = self._due[self._left]
            with torch.no_grad():
                due.send(due.group, torch.zeros(due.rows, self._manifest.groups[due.group].width, device=self._device))


class Ways:
    """The ways back of a model's passes, and the stretches that may be recomputed."""

    _MOST = 64
    """Kinds of passes that are remembered: more than a step makes before its gradients."""

    def __init__(self) -> None:
        self._walking: list[WayBack] = []
        self._passes: dict[tuple[object, tuple[Call, ...]], dict[int, bool]] = {}

    def forget(self) -> None:
        """Forget what may be recomputed."""
        self._passes.clear()

    def walks(self, way: WayBack, task: int) -> None:
        """Note that gradients reach a pass; those of a later one, in the same walk of autograd's, are at an end."""
        if way in self._walking and way.task == task:
            return
        over = [other for other in self._walking if other.task == task]
        for other in over:
            other.finish()
        self._walking = [other for other in self._walking if other.task is not None and other is not way]
        self._walking.append(way)

    def finish(self) -> None:
        """End walks that an error ended."""
        walking, self._walking = self._walking, []
        for way in walking:
            way.finish()

    def passed(self, kind: object, calls: Sequence[Call]) -> None:
        """Remember a pass of a kind: parts of it may be recomputed."""
        key = (kind, tuple(calls))
        self._passes[key] = self._passes.pop(key, {})
        while len(self._passes) > self._MOST:
            del self._passes[next(iter(self._passes))]

    def again(self, kind: object) -> list[tuple[tuple[Call, ...], dict[int, bool]]]:
        """The passes of a kind that may be recomputed, the last first, and which of their calls train when they are."""
        return [(calls, trains) for (own, calls), trains in reversed(self._passes.items()) if own == kind]


class Stretch:
    """A stretch of an earlier pass, recomputed; in the place of `Course`. It may end anywhere, as checkpointing does."""

    def __init__(
        self,
        passes: Sequence[tuple[tuple[Call, ...], dict[int, bool]]],
        manifest: Manifest,
        open_groups: frozenset[int],
        fills: bool,
    ) -> None:
        self._passes = passes
        self._states = [(number, place) for number, (calls, _) in enumerate(passes) for place in range(len(calls))]
        self._manifest = manifest
        self._open = open_groups
        self.fills = fills
        self.broken = False
        self.last_answer: float | None = None
        self.left: list[tuple[Call, float]] = []
        """Nothing is due after an error: checkpointing ends what it recomputes by one."""

    @property
    def place(self) -> int:
        """The place in the plan of the call that was let through last."""
        return self._states[0][1]

    @property
    def trains(self) -> dict[int, bool]:
        """Which calls train, as the first recomputation had it."""
        return self._passes[self._states[0][0]][1]

    def is_open(self, group: int) -> bool:
        """Whether the user allowed what calls of a group show."""
        return group in self._open

    def rows(self, group: int, rows: int, slots: int | None) -> int:
        """How many rows to send for a call; `UnevenTraffic` for one that no earlier pass had in this place."""
        if group in self._open:
            return rows
        calls = [(number, place, self._passes[number][0]) for number, place in self._states]
        states = [
            (number, place)
            for number, place, own in calls
            if place < len(own)
            and own[place][0] == group
            and own[place][2] == slots
            and (own[place][1] == rows or (self.fills and own[place][1] > rows))
        ]
        if not states:
            raise uneven(f"{self._manifest.groups[group].name} was recomputed where no pass before had it")
        self._states = states
        number, place = states[0]
        return self._passes[number][0][place][1]

    def answered(self, group: int) -> None:
        """Go on to the next call."""
        if group not in self._open:
            self._states = [(number, place + 1) for number, place in self._states]

    def over(self) -> None:
        """Nothing is left out."""
