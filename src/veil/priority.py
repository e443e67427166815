"""Sharing the cores: how many there are, and background work that leaves them to whoever waits for an answer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")

_NICENESS = 10
_core = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def move_to_another_core() -> None:
    """Have the calling thread go on on another core than the one it is on, where it may use one. Only on Linux."""
    if _core is None:
        return
    allowed = os.sched_getaffinity(0)
    if others := allowed - {_core()}:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, others)
            os.sched_setaffinity(0, allowed)


def lower_thread_priority() -> None:
    """Make the calling thread, and kernels' threads that it starts from now on, yield to the process's others.

    On Linux threads have their own niceness: with 10 they get about a tenth of a core that another thread wants.
    Elsewhere niceness belongs to the process, and nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def let_helpers_sleep() -> None:
    """Have kernels' helper threads of this process sleep while they have nothing to do; call it before the first kernel.

    GNU OpenMP's would look for work for milliseconds, on cores that a client on the same machine, other connections'
    products or the preparation of masks could use. What the environment says already is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def in_thread_of_its_own(work: Callable[[], R], *, background: bool = False) -> R:
    """Do some work in a thread that ends with it, of low priority if ``background``; its result, or its exception.

    A thread that has run parallel kernels keeps their helper threads until it ends, and GNU OpenMP stops its helpers
    from waiting actively while there are more of them than cores: every online product would pay for waking one (a
    twelfth of a remote token of SmolLM2 on 2 cores, docs/log.md). So kernels of long work run in threads that go away.
    """
    done: Future[R] = Future()

    def run() -> None:
        if background:
            lower_thread_priority()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="veil-work", daemon=True)
    thread.start()
    thread.join()
    return done.result()
