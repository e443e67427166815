"""Which replica gets the next session, and how many there should be. Pure: no Ray, no clock, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a replica says of itself: where it listens, sessions, memory of batches, and batches that wait."""

    address: str
    sessions: int
    most_sessions: int
    used_bytes: int
    memory_bytes: int
    queued: int

    @property
    def share(self) -> float:
        """How full it is: of its sessions or its memory, whichever is more."""
        return max(self.sessions / max(1, self.most_sessions), self.used_bytes / max(1, self.memory_bytes))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Between how many replicas a cluster keeps; one more above the share ``high``, one less below ``low``."""

    least: int
    most: int
    high: float = 0.75
    low: float = 0.25

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"{self.least} to {self.most} replicas; give a least from 1 on, and a most that is not smaller")

    def wanted(self, loads: Sequence[Load], there: int) -> int:
        """How many there should be, of ``there`` that run or start, whose loads are known so far."""
        if there < self.least:
            return self.least
        if len(loads) < there:  # somebody is starting: his room is not known yet
            return there
        mean = sum(load.share for load in loads) / len(loads) if loads else 0.0
        if mean > self.high:
            return min(self.most, there + 1)
        if mean < self.low and there > self.least and mean * there / (there - 1) < self.high / 2:
            return there - 1
        return min(self.most, there)


class Placement:
    """The replicas that take sessions, by name, and how many each was given since it last told its load."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._given: dict[str, int] = {}

    def tell(self, name: str, load: Load) -> None:
        """What a replica is like now."""
        self._loads[name], self._given[name] = load, 0

    def forget(self, name: str) -> None:
        """It takes no sessions: it is gone, or drains."""
        self._loads.pop(name, None)
        self._given.pop(name, None)

    def choose(self) -> str | None:
        """The address of the one with the most room, in memory and in work; None where none has any."""
        free = [name for name, load in self._loads.items() if load.sessions + self._given[name] < load.most_sessions]
        if not free:
            return None
        name = min(free, key=self._fullness)
        self._given[name] += 1
        return self._loads[name].address

    def emptiest(self) -> str | None:
        """The replica that is the least trouble to drain."""
        return min(self._loads, key=lambda name: self._loads[name].sessions, default=None)

    @property
    def loads(self) -> list[Load]:
        """Of all that take sessions."""
        return list(self._loads.values())

    @property
    def addresses(self) -> Iterable[str]:
        """Of all that take sessions."""
        return [load.address for load in self._loads.values()]

    def _fullness(self, name: str) -> tuple[float, int]:
        load, given = self._loads[name], self._given[name]
        mean = load.used_bytes / load.sessions if load.sessions else load.memory_bytes / max(1, load.most_sessions)
        memory = (load.used_bytes + given * mean) / max(1, load.memory_bytes)
        return max(memory, (load.sessions + given) / max(1, load.most_sessions)), load.queued
