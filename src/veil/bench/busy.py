"""Processes that keep every core busy beside a measurement: each multiplies matrices with a thread for every core.

    python -m veil.bench.busy

says that it has begun, and ends with its input, so that none outlives the measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

SIZE = 768
"""Rows and columns of a matrix: three of them are in a core's caches, as those of most programs are."""


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Inside the block ``count`` such processes run; all have begun when it is entered and ended when it is left."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(_process())
        yield


@contextmanager
def _process() -> Iterator[None]:
    command = [sys.executable, "-m", "veil.bench.busy"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError("a busy process ended; its own message is above")
            yield
        finally:
            process.stdin.close()
            process.stdout.close()
            process.wait()


def main() -> None:
    """Multiply until standard input ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    left = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32)
    product = left @ left
    print("busy", flush=True)
    while True:
        np.matmul(left, left, out=product)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
