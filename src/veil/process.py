"""What a process asks of its system once: files for a server, and for a client that no dump of its memory is written."""

from __future__ import annotations

import ctypes
import sys

try:
    import resource
except ImportError:  # not POSIX
    resource = None  # type: ignore[assignment]

MOST_FILES = 1 << 16
_PR_SET_DUMPABLE = 4


def raise_file_limit() -> int:
    """Let this process open as many files as it may, `MOST_FILES` at most; how many that is now."""
    if resource is None:
        return MOST_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = MOST_FILES if hard == unlimited else min(hard, MOST_FILES)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST_FILES if soft == unlimited else soft


def keep_out_of_dumps() -> None:
    """Have the system write no memory of this process to a file when it crashes, nor show it to others of its user.

    A debugger or profiler cannot attach from then on. Swap is not covered: encrypt it, or turn it off.
    """
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
