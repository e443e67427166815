"""Ctrl-C while an answer is written: an event, so that nothing is torn in the middle of what is drawn."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from veil.flag import Flag

try:
    import termios
except ImportError:  # not POSIX
    termios = None  # type: ignore[assignment]


@contextmanager
def interrupts_set(event: Flag, said: str = "") -> Iterator[None]:
    """Have the first Ctrl-C set the event and the next one raise ``KeyboardInterrupt``; the terminal shows no ``^C``.

    The first also prints ``said`` on standard error, if anything. Only the main thread can have it so; in others nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        if said:
            print(said, file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, on_signal)
    shown = _echo_of_controls(False)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if shown:
            _echo_of_controls(True)


def _echo_of_controls(wanted: bool) -> bool:
    """Whether the terminal echoes control characters as ``^C``; it does, or not, from now on."""
    if termios is None or not sys.stdin.isatty():
        return False
    state = termios.tcgetattr(sys.stdin)
    was = bool(state[3] & termios.ECHOCTL)
    state[3] = state[3] | termios.ECHOCTL if wanted else state[3] & ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, state)
    return was
