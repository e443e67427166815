"""The server of a measurement in two processes: a bundle's server half on loopback, with its own count of its seconds.

    python -m veil.bench.server_process BUNDLE/server cpu

Prints its port. For each line on standard input it prints the seconds that its metrics have counted so far and its memory
high-water; it ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypedDict


class Spent(NamedTuple):
    """Seconds that a server computed: preparing batches, and multiplying rows."""

    prepare: float = 0.0
    evaluate: float = 0.0


class _Answer(TypedDict, total=False):
    """A line of the process: its port, then what it took since it began."""

    port: int
    memory_bytes: int
    seconds: dict[str, float]


class ServerProcess:
    """The program below as a child process: its ``port``, `take` and `memory_bytes`. A context manager."""

    def __init__(self, half: Path, device: str) -> None:
        command = [sys.executable, "-m", "veil.bench.server_process", str(half), device]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._before = Spent()
        self.memory_bytes = 0
        try:
            self.port = int(self._answer()["port"])
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def take(self) -> Spent:
        """What the server spent since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("take\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.memory_bytes = int(answer["memory_bytes"])
        before, self._before = self._before, Spent(**answer["seconds"])
        return Spent(self._before.prepare - before.prepare, self._before.evaluate - before.evaluate)

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

    def _answer(self) -> _Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server's process ended; its own message is above")
        answer: _Answer = json.loads(line)
        return answer


def main(half: str, device: str) -> None:
    """Serve one half until standard input ends."""
    from veil.bench.machine import high_water_bytes
    from veil.kernels.backend import kernels_for
    from veil.server.config import ServerConfig, server_limits
    from veil.server.hosted import build_bundles
    from veil.server.listen import Server
    from veil.server.store import SessionStore

    limits = server_limits()
    store = SessionStore(limits)
    bundles = build_bundles({"bench": Path(half)}, {}, kernels_for(device))
    server = Server(bundles, store, ServerConfig(port=0, limits=limits))
    server.start()
    registry = server.metrics.registry
    print(json.dumps({"port": server.port}), flush=True)
    for _ in sys.stdin:
        seconds = {name: registry.get_sample_value("veil_seconds_total", {"phase": name}) for name in Spent._fields}
        print(json.dumps({"seconds": seconds, "memory_bytes": high_water_bytes()}), flush=True)
    server.stop(5.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
