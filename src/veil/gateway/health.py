"""Whether the server answers: said at once when it does not, and again when it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOK_S = 0.4
_QUIET_S = 3.0
"""Seconds without any traffic of the model's own, after which the server is asked."""

GIVE_UP_S = 7.0
"""For so long a lost server is waited for before those who ask are told; it may be a restart."""


class ServerHealth:
    """Looks after one server from a thread of its own.

    ``ask`` says whether the server answers, within two seconds; ``signs`` is (anything that grows with traffic that went
    well, anything that grows when it failed): a failure is looked into at once, and while traffic goes well nobody is asked.
    ``told`` is called with True when the server is back and False when it is lost, once each.
    """

    def __init__(
        self,
        ask: Callable[[], bool],
        signs: Callable[[], tuple[int, int]],
        told: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._signs, self._told, self._clock = ask, signs, told, clock
        self._well, self._failed = signs()
        self._heard = clock()
        self._lost_at: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="veil-health", daemon=True)

    @property
    def lost_s(self) -> float | None:
        """For how long it has not answered; None while it does."""
        since = self._lost_at
        return None if since is None else self._clock() - since

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once: what the signs say, and ask where they leave a doubt."""
        well, failed = self._signs()
        grew, broke = well > self._well, failed > self._failed
        self._well, self._failed = well, failed
        if grew and not broke and self._lost_at is None:
            self._heard = self._clock()
            return
        if not broke and self._lost_at is None and self._clock() - self._heard < _QUIET_S:
            return
        answers = self._ask()
        self._heard = self._clock()
        if answers == (self._lost_at is None):
            return
        self._lost_at = None if answers else self._clock()
        self._told(answers)

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.look()
