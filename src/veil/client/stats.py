"""Counters of one client: rows, masks, bytes by direction and moment, seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

PHASES = ("prepare", "prepare_server", "wait", "encrypt", "online_server", "check", "decrypt", "client")


@dataclass
class Stats:
    """What a session did so far; ``after - before`` is what happened between.

    ``rows`` are token rows through the model's body, ``rows_made`` rows of batches made offline; ``rows_ready`` of the rows
    found theirs made. ``sessions_lost`` were opened anew because the server had forgotten them, ``reconnects`` are
    streams that broke. ``trips`` are round trips that a forward pass waited for. Of ``drafted`` tokens ``accepted`` were
    right; the rows of the others spent theirs for nothing. Bytes are payload bytes at the transport.

    ``seconds`` has the phases prepare (making batches, both sides, in the background or not) and of it prepare_server
    (waiting for the other side), wait (a forward pass that waits for rows), online_server (waiting for replies) and client
    (the rest of a forward pass: every layer that stays with the client) and of it encrypt, check and decrypt.
    """

    rows: int = 0
    rows_ready: int = 0
    trips: int = 0
    drafted: int = 0
    accepted: int = 0
    rows_made: int = 0
    sessions_lost: int = 0
    reconnects: int = 0
    bytes_up_offline: int = 0
    bytes_down_offline: int = 0
    bytes_up_online: int = 0
    bytes_down_online: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    kernels: str = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's wall time to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def spent(self, name: str, since: float) -> float:
        """Add the time since a moment of `time.perf_counter` to a phase; the moment that is now."""
        now = time.perf_counter()
        self.seconds[name] += now - since
        return now

    def copy(self) -> Stats:
        """A snapshot."""
        return self - Stats()

    def reset(self) -> None:
        """Back to zero, in place."""
        fresh = Stats(kernels=self.kernels)
        for item in fields(self):
            setattr(self, item.name, getattr(fresh, item.name))

    def __sub__(self, other: Stats) -> Stats:
        return self._with(other, -1)

    def __add__(self, other: Stats) -> Stats:
        return self._with(other, 1)

    def _with(self, other: Stats, sign: int) -> Stats:
        values = {
            item.name: getattr(self, item.name) + sign * getattr(other, item.name)
            for item in fields(self)
            if item.name not in ("seconds", "kernels")
        }
        seconds = {name: self.seconds[name] + sign * other.seconds[name] for name in PHASES}
        return Stats(**values, seconds=seconds, kernels=self.kernels or other.kernels)
