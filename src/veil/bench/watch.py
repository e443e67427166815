"""Where the time goes: functions of modules and classes, watched from outside while a block runs."""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

KERNELS = {
    "scales": "client encrypt",
    "encrypt": "client encrypt",
    "answer": "online product",
    "decrypt": "client decrypt",
    "dequantize": "client decrypt",
    "expand_b": "expand",
    "product": "hint product",
    "combine_b": "combine",
}
"""Kernels by the phase that their time belongs to."""

AHEAD = frozenset({"expand", "hint product", "combine"})
"""The phases that make masks."""


class Spent(NamedTuple):
    """Seconds inside a label's functions, and how often they were called."""

    seconds: float
    calls: int


class Watch:
    """Adds up the time inside chosen functions, by label, until it is left: a context manager.

    ``targets`` are (owner, attribute, label); an owner is a module or a class. Functions of one label do not call each
    other. ``finish`` runs at the end of each call, inside its time: a device's synchronization. Thread safe.
    """

    def __init__(self, targets: list[tuple[Any, str, str]], finish: Callable[[], None] | None = None) -> None:
        self._targets = targets
        self._finish = finish
        self._lock = threading.Lock()
        self._spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._originals: list[tuple[Any, str, Any]] = []

    def take(self) -> Mapping[str, Spent]:
        """What was spent since the last `take`."""
        with self._lock:
            spent = {label: Spent(seconds, int(calls)) for label, (seconds, calls) in self._spent.items()}
            self._spent.clear()
        return defaultdict(lambda: Spent(0.0, 0), spent)

    def __enter__(self) -> Watch:
        for owner, attribute, label in self._targets:
            original = getattr(owner, attribute)
            self._originals.append((owner, attribute, original))
            setattr(owner, attribute, self._timed(original, label))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._originals:
            setattr(*self._originals.pop())

    def _timed(self, original: Callable[..., Any], label: str) -> Callable[..., Any]:
        finish, clock = self._finish, time.perf_counter

        @functools.wraps(original)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = clock()
            try:
                result = original(*arguments, **named)
                if finish is not None:
                    finish()
                return result
            finally:
                spent = clock() - start
                with self._lock:
                    total = self._spent[label]
                    total[0] += spent
                    total[1] += 1

        return timed


def kernel_targets(kernels: Any) -> list[tuple[Any, str, str]]:
    """The kernels of a backend that belong to a phase."""
    return [(kernels, name, label) for name, label in KERNELS.items() if hasattr(kernels, name)]


def synchronizing(kernels: Any) -> Callable[[], None] | None:
    """What makes a backend's calls finish, None where they do anyway."""
    if kernels.name != "cuda":
        return None
    import torch

    return torch.cuda.synchronize
