"""Masks in the order in which they were made, and how far each group has used them.

Each group takes the oldest masks that it has not used. At the start of a forward pass the groups are brought level, so
that a layer that was skipped, or called twice, does not hold masks back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from veil.crypto.mask import ClientMask
from veil.model.manifest import Manifest


class MaskPool:
    """Prepared masks of one session. `take` marks what it hands out as spent."""

    def __init__(self, manifest: Manifest) -> None:
        self._segments = [group.segment for group in manifest.groups]
        self._next = [0] * len(self._segments)
        self._masks: deque[ClientMask] = deque()
        self._first = 0

    def add(self, masks: Sequence[ClientMask]) -> None:
        """Append masks, numbered on from the last."""
        for mask in masks:
            assert mask.number == self._first + len(self._masks)
            self._masks.append(mask)

    def ready(self, group: int) -> int:
        """How many prepared masks the group has not used."""
        return sum(1 for _ in self._unused(group))

    def take(self, group: int, count: int) -> list[ClientMask]:
        """The next ``count`` masks for a group, marked spent for it; the caller made sure that they are `ready`."""
        taken: list[ClientMask] = []
        for mask in self._unused(group):
            if len(taken) == count:
                break
            taken.append(mask)
        assert len(taken) == count
        for mask in taken:
            mask.spend(group)
        if taken:
            self._next[group] = taken[-1].number + 1
        return taken

    def level(self) -> int:
        """Start a forward pass: drop masks that the furthest body group has passed; the first number still held."""
        body = [place for place, segment in zip(self._next, self._segments, strict=True) if segment == "body"]
        floor = max(body or self._next, default=0)
        self._next = [max(place, floor) for place in self._next]
        while self._masks and self._first < floor:
            self._masks.popleft()
            self._first += 1
        return floor

    def clear(self) -> None:
        """Forget every mask; numbers go on."""
        self._first += len(self._masks)
        self._masks.clear()

    def _unused(self, group: int):  # type: ignore[no-untyped-def]
        segment = self._segments[group]
        start = max(0, self._next[group] - self._first)
        for position in range(start, len(self._masks)):
            mask = self._masks[position]
            if segment in mask.mu and not mask.is_spent(group):
                yield mask
