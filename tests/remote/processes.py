"""`veil` commands as processes of this tree: one that ends, and one that listens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
WATCHED = ("veil.random", "veil.crypto.batch", "veil.client", "transformers", "tokenizers", "torch")
RUN = "from veil.cli import main; main()"
BEGIN = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a shell's background job would ignore it
{RUN}
"""
LISTEN = f"""
import atexit, json, sys
atexit.register(lambda: print("modules", json.dumps([m for m in sys.modules if m in {WATCHED!r}]), file=sys.stderr))
{RUN}
"""


def _command(program: str, arguments: tuple[str | Path, ...]) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


def _environment(changes: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "NO_COLOR": "1", **changes}


def veil(*arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """A command and what it said; ``changes`` are of its environment."""
    command = _command(RUN, arguments)
    return subprocess.run(command, env=_environment(changes), capture_output=True, text=True, timeout=300)


def began(*arguments: str | Path, **changes: str) -> subprocess.Popen[str]:
    """A command that goes on until it ends or takes SIGINT."""
    command, pipe = _command(BEGIN, arguments), subprocess.PIPE
    return subprocess.Popen(command, env=_environment(changes), stdout=pipe, stderr=pipe, text=True)


class Listening:
    """A command that listens, and the ``port`` that it said; its last line is what it had loaded of ``WATCHED``.

    One that does not come to listen is over when the `AssertionError` says what it wrote.
    """

    def __init__(self, *arguments: str | Path) -> None:
        command = _command(LISTEN, arguments)
        self.process = subprocess.Popen(command, env=_environment({}), stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        try:
            self.port = self._told()
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def _told(self) -> int:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"(?:listening on |at http://)\S*?:(\d+)", line)
            if found:
                return int(found[1])
        raise AssertionError("".join(self.lines))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code; all it wrote to standard error is in ``lines``."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=40)
        self.lines += rest.splitlines(keepends=True)
        return self.process.returncode
