"""`veil` commands in the test's own process: seconds sooner than in one that has to load the libraries again."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

from typer.testing import CliRunner

from veil.cli import app


def veil(*arguments: str | Path, **changes: str) -> CompletedProcess[str]:
    """What `processes.veil` gives; ``changes`` are of the environment."""
    command = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, command, env={"NO_COLOR": "1", **changes})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception  # a traceback, where a user would see one
    return CompletedProcess(command, done.exit_code, done.stdout, done.stderr)
