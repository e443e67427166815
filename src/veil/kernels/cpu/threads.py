"""How many threads a kernel takes: all for long work, and for a row's product whatever was quicker lately.

A parallel call ends when its slowest thread does. On a quiet machine two threads halve a product of 80 µs; beside processes
that keep the cores busy the second thread may wait milliseconds for a core.
"""

from __future__ import annotations

import time

from numba import config

_WORTH_THREADS = 1 << 17
"""Values of a step on rows from which on all threads take part: some 50 µs on one."""
_TRY_AFTER = 64
_TRY_AFTER_MOST = 4096
_NEW = 0.25


def all_threads() -> int:
    """The threads that Numba may use."""
    threads: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return threads


def threads_for(values: int) -> int:
    """Threads for a step on this many values."""
    return all_threads() if values >= _WORTH_THREADS else 1


class ProductThreads:
    """Chooses one thread or all for products of rows, by what a multiply-add took lately with each.

    The slower way is tried again after a while, and after twice as long each time that it is still the slower one.
    """

    def __init__(self) -> None:
        self._seconds = {True: 0.0, False: 0.0}
        self._alone = False
        self._left = 1
        self._after = _TRY_AFTER

    def choose(self, work: int) -> int:
        """Threads for a product of this many multiply-adds; `took` is told how long it was."""
        if all_threads() == 1 or work < _WORTH_THREADS:
            return 1
        self._left -= 1
        if self._left <= 0:
            self._left = self._after
            return all_threads() if self._alone else 1
        return 1 if self._alone else all_threads()

    def took(self, work: int, threads: int, seconds: float) -> None:
        """Note what a product took."""
        if all_threads() == 1 or work < _WORTH_THREADS:
            return
        alone, each = threads == 1, seconds / work
        before = self._seconds[alone]
        self._seconds[alone] = each if before == 0.0 else (1 - _NEW) * before + _NEW * each
        if self._seconds[not alone] == 0.0:
            return
        quicker = self._seconds[True] < self._seconds[False]
        if quicker != self._alone:
            self._alone, self._after = quicker, _TRY_AFTER
        elif alone != self._alone:
            self._after = min(2 * self._after, _TRY_AFTER_MOST)
            self._left = self._after


def clock() -> float:
    """Seconds, for `ProductThreads.took`."""
    return time.perf_counter()
