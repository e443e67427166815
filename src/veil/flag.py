"""A flag that threads wait for, and that Ctrl-C cannot break."""

from __future__ import annotations

import threading


class Flag:
    """Something that has happened or not, used as `threading.Event` is; a signal's handler may set it at any moment.

    An Event holds a lock over several steps of Python, and a signal may come between two of them: a handler that sets it
    then waits for ever for its own thread, and a ``KeyboardInterrupt`` can leave the lock taken. Here each step is one
    call into C.
    """

    def __init__(self) -> None:
        self._happened = False
        self._gate = threading.Lock()  # open when it has happened
        self._gate.acquire()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._happened

    def set(self) -> None:
        """It has happened; who waits goes on."""
        self._happened = True
        try:
            self._gate.release()
        except RuntimeError:  # open already
            return

    def clear(self) -> None:
        """It has not happened."""
        self._happened = False
        self._gate.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it happens, or so many seconds; whether it has."""
        if not self._happened and self._gate.acquire(timeout=-1 if timeout is None else timeout):
            self.set()  # the gate stays open for others
        return self._happened
