"""Waiting for what other threads and processes bring about: the one place where a test sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSE_S = 0.002


def until(condition: Callable[[], object], within_s: float = 60.0, what: str = "") -> None:
    """Wait until ``condition()`` is true; `AssertionError` that says ``what`` was waited for when it is not in time.

    ``within_s`` is how long a busy machine may take, not how long it should: it costs nothing where all is well.
    """
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"{what or getattr(condition, '__name__', 'it')} did not come about in {within_s:g} s"
        time.sleep(_PAUSE_S)
