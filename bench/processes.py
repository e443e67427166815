"""veil's commands as processes of a measurement."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VEIL = (sys.executable, "-m", "veil")


def compiled(path: Path, *options: str) -> Path:
    """The bundle of SmolLM2 at a new path, as `veil compile` makes it."""
    subprocess.run([*VEIL, "compile", "smollm2", str(path), *options], check=True, capture_output=True)
    return path


def begun(*arguments: str | Path) -> tuple[subprocess.Popen[str], int]:
    """A `veil` command that listens, and its port. `SystemExit` if it does not come to that; then it is over."""
    process = subprocess.Popen([*VEIL, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"(?:listening on |at http://)\S*?:(\d+)", line)
            if found:
                threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would fill the pipe
                return process, int(found[1])
        raise SystemExit(f"{arguments[0]} did not start")
    except BaseException:
        process.kill()
        process.communicate()
        raise


@contextmanager
def listening(*arguments: str | Path) -> Iterator[int]:
    """The port of a `veil` command that listens; it ends with the block."""
    process, port = begun(*arguments, "--port", "0")
    with process:
        try:
            yield port
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # on a machine that does other things too; nothing of it is wanted any more
                process.kill()
