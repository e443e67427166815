"""Giving way: background threads that leave the processor to whoever waits for an answer."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICENESS = 10


def lower_thread_priority() -> None:
    """Make the calling thread, and kernels' threads that it starts from now on, yield to the process's others.

    On Linux threads have their own niceness: with 10 they get about a tenth of a core that another thread wants.
    Elsewhere niceness belongs to the process, and nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
