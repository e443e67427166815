"""Kernels of several threads: compiled by Numba, and called one at a time where its threading layer needs that.

Numba runs them on TBB, OpenMP or a pool of its own, `workqueue`, whichever it finds. The pool ends the process when two
threads call kernels at once. It is what there is on Linux without libgomp, on macOS and on Windows without OpenMP's library.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba
from numba import prange

from veil.kernels.cpu.kept import jitted

_POOL = "workqueue"
_turn = threading.RLock()
_found: list[str] = []
_log = logging.getLogger("veil")


P = ParamSpec("P")
R = TypeVar("R")


def parallel(**options: object) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: ``njit(parallel=True)`` with Numba's options, whose calls are safe in every thread."""

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        kernel = jitted(parallel=True, nogil=True, **options)(function)

        @functools.wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            if _found and _found[0] != _POOL:
                return kernel(*arguments, **named)
            with _turn:
                if not _found:
                    _choose()
                result = kernel(*arguments, **named)
                if not _found:
                    _note(numba.threading_layer())  # type: ignore[attr-defined]
            return result

        return call

    return compiled


def layer() -> str:
    """The threading layer of this process, ``tbb``, ``omp`` or ``workqueue``; runs a kernel if none has run yet."""
    if not _found:
        _nothing(2)
    return _found[0]


def _choose() -> None:
    """Before the first kernel. On a Mac, Numba's OpenMP beside torch's own copy of it ends the process."""
    if sys.platform == "darwin" and "NUMBA_THREADING_LAYER" not in os.environ:
        numba.config.THREADING_LAYER = _POOL


def _note(name: str) -> None:
    _found.append(name)
    if name == _POOL:
        _log.info("kernels of several threads take turns: Numba found no OpenMP or TBB library; %s", remedy())


def remedy() -> str:
    """What makes kernels quicker where they take turns."""
    if sys.platform == "linux":
        return "install libgomp1 (Debian, Ubuntu), libgomp (Fedora) or `pip install tbb`"
    return "on Windows `pip install tbb`" if sys.platform == "win32" else "a Mac has no better way yet"


@parallel()
def _nothing(count):  # type: ignore[no-untyped-def]
    total = 0
    for index in prange(count):
        total += index
    return total
