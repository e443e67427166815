"""How long a client waits and how often it tries again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from veil.flag import Flag
from veil.given import seconds_given


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Deadlines and retries, in seconds.

    ``connect_s`` for the first answer of a server, ``reply_s`` for one reply to rows to be whole, ``prepare_s`` for one
    upload to be usable; after a failure tries go on for ``retry_s``, with pauses that double from ``pause_s`` up to 16
    times that. ``keepalive_s`` is half the time in which a dead connection is noticed while nothing else is.
    """

    connect_s: float = 10.0
    reply_s: float = 30.0
    prepare_s: float = 120.0
    retry_s: float = 60.0
    pause_s: float = 0.1
    keepalive_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            seconds_given(name, value, zero=name in ("retry_s", "pause_s"))

    def retries(self, within_s: float | None = None, stop: Flag | None = None) -> Retries:
        """A series of tries that starts now and ends early when ``stop`` is set."""
        return Retries(self.retry_s if within_s is None else within_s, self.pause_s, stop)


class Retries:
    """Pauses between tries until the time is over or ``stop`` is set."""

    def __init__(
        self,
        within_s: float,
        pause_s: float,
        stop: Flag | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._stop = clock, stop or Flag()
        self._end = clock() + within_s
        self._pause, self._longest = pause_s, 16 * pause_s
        self.count = 1

    def again(self) -> bool:
        """Pause and say that there is time for another try; False when there is not, at once after ``stop``."""
        pause = self._pause * (0.75 + 0.5 * random.random())  # noqa: S311
        if self._clock() + pause > self._end:
            return False
        if self._stop.wait(pause):
            return False
        self._pause = min(2 * self._pause, self._longest)
        self.count += 1
        return True
