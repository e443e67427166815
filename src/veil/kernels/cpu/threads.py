"""How many threads a kernel takes: all for long work, and for a row's product whatever was quicker lately.

A parallel call ends when its slowest thread does. On a quiet machine two threads halve a product of 80 µs; beside processes
that keep the cores busy the second thread may wait milliseconds for a core.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from numba import config

_WORTH_THREADS = 1 << 17
"""Values of a step on rows from which on all threads take part: some 50 µs on one."""
_SAMPLES = 9
_FIRST = 2
"""Calls that are not counted: they load a kernel."""
_TRY_AFTER = 128
_TRY_AFTER_MOST = 4096


def all_threads() -> int:
    """The threads that Numba may use."""
    threads: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return threads


def threads_for(values: int) -> int:
    """Threads for a step on this many values."""
    return all_threads() if values >= _WORTH_THREADS else 1


class ProductThreads:
    """Chooses one thread or all for products of rows, by the median of what a multiply-add took lately with each.

    The slower way is tried again after a while, `_SAMPLES` times in a row, and after twice as long each time that it is
    still the slower one; at once where the chosen way has become slower than the other was when it was tried last.
    """

    def __init__(self) -> None:
        self._all = all_threads()
        self._seen: dict[bool, deque[float]] = {alone: deque(maxlen=_SAMPLES) for alone in (True, False)}
        self._skipped = {True: 0, False: 0}
        self._alone = False
        self._trying = True
        self._left = _SAMPLES + _FIRST
        self._after = _TRY_AFTER

    def choose(self, work: int) -> int:
        """Threads for a product of this many multiply-adds; `took` is told how long it was."""
        if self._all == 1 or work < _WORTH_THREADS:
            return 1
        return 1 if self._alone != self._trying else self._all

    def took(self, work: int, threads: int, seconds: float) -> None:
        """Note what a product took."""
        if self._all == 1 or work < _WORTH_THREADS:
            return
        alone = threads == 1
        if self._skipped[alone] < _FIRST:
            self._skipped[alone] += 1
        else:
            self._seen[alone].append(seconds / work)
        self._left -= 1
        if self._left <= 0 or (not self._trying and self._left % _SAMPLES == 0 and self._is_slower_now()):
            self._turn()

    def _is_slower_now(self) -> bool:
        """Whether the chosen way took longer lately than the other when it was tried last."""
        other, own = self._seen[not self._alone], self._seen[self._alone]
        return len(own) == len(other) == _SAMPLES and _median(own) > _median(other)

    def _turn(self) -> None:
        """The end of a time of trying, or of using, one way."""
        if not self._trying:
            self._trying, self._left = True, _SAMPLES
            return
        self._trying = False
        other, own = (self._seen[alone] for alone in (not self._alone, self._alone))
        if not own:  # only the first way that was tried is known: now the other, as long
            self._left = _SAMPLES + _FIRST
            return
        if _median(other) < _median(own):
            self._alone, self._after = not self._alone, _TRY_AFTER
        else:
            self._after = min(2 * self._after, _TRY_AFTER_MOST)
        self._left = self._after


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def clock() -> float:
    """Seconds, for `ProductThreads.took`."""
    return time.perf_counter()
