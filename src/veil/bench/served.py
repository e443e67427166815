"""The server of a measurement in two processes: a bundle's server half on loopback, its kernels watched.

    python -m veil.bench.served BUNDLE/server cpu

Prints its port. For each line on standard input it prints what its kernels spent since the last one and its memory
high-water; it ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from veil.bench.watch import Spent, Watch, kernel_targets, synchronizing


class ServerProcess:
    """The program below as a child process: its ``port``, `take` and `memory_bytes`. A context manager."""

    def __init__(self, half: Path, device: str) -> None:
        command = [sys.executable, "-m", "veil.bench.served", str(half), device]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.port = int(self._answer()["port"])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.memory_bytes = 0

    def take(self) -> Mapping[str, Spent]:
        """What the server's kernels spent since the last call, by phase."""
        assert self._process.stdin is not None
        self._process.stdin.write("take\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.memory_bytes = int(answer["memory_bytes"])
        return defaultdict(lambda: Spent(0.0, 0), {label: Spent(*spent) for label, spent in answer["spent"].items()})

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server's process ended; its own message is above")
        return dict(json.loads(line))


def main(half: str, device: str) -> None:
    """Serve one half until standard input ends."""
    from veil.bench.machine import high_water_bytes
    from veil.kernels.backend import kernels_for
    from veil.server.listen import Server, ServerConfig, build_bundles, server_limits
    from veil.server.store import SessionStore

    kernels = kernels_for(device)
    limits = server_limits()
    store = SessionStore(limits)
    server = Server(build_bundles({"bench": Path(half)}, {}, kernels, store), store, ServerConfig(port=0, limits=limits))
    server.start()
    with Watch(kernel_targets(kernels), synchronizing(kernels)) as watch:
        print(json.dumps({"port": server.port}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"spent": dict(watch.take()), "memory_bytes": high_water_bytes()}), flush=True)
    server.stop(5.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
