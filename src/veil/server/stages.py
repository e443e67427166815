"""Where a message's time goes in the server, counted by the serving loop and told to the metrics now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

STAGES = ("check", "wait", "product", "reply")
_TELL_S = 0.05


def _nobody(seconds: Mapping[str, float], counts: Mapping[str, int], computed_s: float) -> None: ...


class Stages:
    """Seconds by stage: ``check``, ``wait``, ``product`` (for each that it answered), ``reply``; messages, rows, products.

    ``tell(seconds, counts, computed_s)`` gets what was counted since the last time. Thread safe.
    """

    def __init__(self, tell: Callable[[Mapping[str, float], Mapping[str, int], float], object] = _nobody) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._told = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._counts = dict.fromkeys(("messages", "rows", "products"), 0)
        self._computed = 0.0

    def answered(self, seconds: tuple[float, float, float, float], messages: int, rows: int, computed_s: float) -> None:
        """A product answered so many messages, or pieces of them: their seconds in the order of `STAGES`."""
        with self._lock:
            own, counts = self._seconds, self._counts
            check, wait, product, reply = seconds
            own["check"] += check
            own["wait"] += wait
            own["product"] += product
            own["reply"] += reply
            counts["messages"] += messages
            counts["rows"] += rows
            counts["products"] += 1
            self._computed += computed_s
        if time.monotonic() - self._told > _TELL_S:
            self.flush()

    def fronted(self, check_s: float, reply_s: float) -> None:
        """Fronts checked and sent for so long, for messages that were counted when their product was."""
        with self._lock:
            self._seconds["check"] += check_s
            self._seconds["reply"] += reply_s

    def flush(self) -> None:
        """Tell what was counted."""
        with self._lock:
            self._told = time.monotonic()
            seconds, counts, computed = self._seconds, self._counts, self._computed
            self._clear()
        self._tell(seconds, counts, computed)
