"""Ctrl-C during an answer whose length is hidden: the answer is not shown any further, and goes on for the server."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SAID = "veil: the rest of the answer is sent as rows of zeros, so that its length does not show; Ctrl-C again ends at once"


@contextmanager
def interrupting(cancelled: threading.Event, *, hidden: bool) -> Iterator[None]:
    """While it is entered, the first Ctrl-C sets ``cancelled`` where lengths are ``hidden``; a second one is as ever."""
    if not hidden or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def once(number: int, frame: Any) -> None:
        cancelled.set()
        print(_SAID, file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
