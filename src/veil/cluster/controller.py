"""Keeps a cluster's replicas: hears their loads, starts and drains them, forgets those that died. Ray is elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from veil.cluster.placement import Load, Placement, Scale
from veil.server.logs import event

_LOG = logging.getLogger("veil.server")


class Replicas(Protocol):
    """What starts and ends replicas; names are its own."""

    def start(self) -> str:
        """Begin to start one; its name. It restarts by itself when it dies, until `end`."""

    def load(self, name: str) -> Load | None:
        """What it says of itself; None where it does not answer now."""

    def drain(self, name: str) -> None:
        """Have it refuse new sessions."""

    def end(self, name: str) -> None:
        """End it for good."""


class Controller:
    """One step a second: `step` looks at every replica once. ``drain_s`` is how long one that drains may keep sessions."""

    def __init__(
        self, replicas: Replicas, scale: Scale, *, drain_s: float = 300.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._replicas, self._scale, self._drain_s, self._clock = replicas, scale, drain_s, clock
        self._lock = threading.Lock()
        self.placement = Placement()
        self._names: list[str] = []
        self._draining: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        """Of replicas that run or start, without those that drain."""
        return [name for name in self._names if name not in self._draining]

    def choose(self) -> str | None:
        """The address for the next session."""
        with self._lock:
            return self.placement.choose()

    def addresses(self) -> list[str]:
        """Of all replicas that take sessions."""
        with self._lock:
            return list(self.placement.addresses)

    def step(self) -> None:
        """Hear loads, end what has drained, and start or drain one where there are too few or too many."""
        for name in list(self._names):
            load = self._replicas.load(name)
            with self._lock:
                if load is None or name in self._draining:
                    self.placement.forget(name)
                else:
                    self.placement.tell(name, load)
            if name in self._draining and (load is None or not load.sessions or self._clock() > self._draining[name]):
                self._end(name)
        with self._lock:
            wanted, there = self._scale.wanted(self.placement.loads, len(self.names)), len(self.names)
        for _ in range(wanted - there):
            self.add()
        if wanted < there:
            with self._lock:
                least = self.placement.emptiest()
            if least is not None:
                self.drain(least)

    def add(self) -> str:
        """Start a replica."""
        name = self._replicas.start()
        self._names.append(name)
        event("replica started", replica=name)
        return name

    def drain(self, name: str) -> None:
        """Give it no more sessions, and end it when it has none, or after ``drain_s``: clients then go on elsewhere."""
        with self._lock:
            self.placement.forget(name)
        self._draining[name] = self._clock() + self._drain_s
        self._replicas.drain(name)
        event("replica drains", replica=name)

    def stop(self) -> None:
        """End all."""
        for name in list(self._names):
            self._end(name)

    def _end(self, name: str) -> None:
        self._names.remove(name)
        self._draining.pop(name, None)
        self._replicas.end(name)
        event("replica ended", replica=name)
