"""What the commands share: the console for everything that is not the result, progress, and one-line errors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from veil.disk import NO_ROOM
from veil.errors import VeilError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

P = ParamSpec("P")
R = TypeVar("R")


def error_console() -> Console:
    """A console on standard error as it is now; the result of a command goes to standard output."""
    return Console(file=sys.stderr)


EXTRAS = {
    "server": ("grpc_health", "prometheus_client"),
    "gateway": ("fastapi", "uvicorn", "pydantic", "pydantic_core", "llguidance", "prompt_toolkit", "starlette"),
    "bench": ("matplotlib",),
    "cuda": ("triton",),
}
"""What each extra installs, by the names that are imported."""


def extra_of(module: str | None) -> str | None:
    """The extra that installs a module which is missing, None for one that no extra installs."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a command's expected errors into one line on standard error and exit code 2, and Ctrl-C into 130.

    Expected are every `VeilError`, a ``ValueError`` or ``TypeError`` that veil's own code raised, and an ``OSError`` that
    names a file or says that a disk is full; anything else is a bug and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return _interrupted(command, *args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("veil: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except ModuleNotFoundError as error:
            if (extra := extra_of(error.name)) is None:
                raise
            typer.echo(f"veil: {error.name} is not installed: pip install 'veil-llm[{extra}]'", err=True)
            raise typer.Exit(EXIT_ERROR) from None
        except (VeilError, ValueError, TypeError) as error:
            if not isinstance(error, VeilError) and not _raised_by_veil(error.__traceback__):
                raise
            typer.echo(f"veil: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(EXIT_ERROR) from None
        except OSError as error:
            full = error.errno in NO_ROOM
            if error.filename is None and not full:
                raise
            advice = "make room there, or choose another place" if full else "check the path and who may use it"
            place = f"{error.filename}: " if error.filename is not None else ""
            typer.echo(f"veil: {place}{error.strerror}; {advice}", err=True)
            raise typer.Exit(EXIT_ERROR) from None

    return wrapped


def _interrupted(command: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Its result; ``KeyboardInterrupt`` for an error that came of one, as where it cut off a lock's release."""
    try:
        return command(*args, **kwargs)
    except Exception as error:
        before = error.__context__
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is None:
            raise
        raise KeyboardInterrupt from None


def _raised_by_veil(traceback: TracebackType | None) -> bool:
    module = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module == "veil" or module.startswith("veil.")


class Reporter:
    """Progress on standard error: bars on a terminal, one line a stage elsewhere.

    Used as a context manager; ``report`` is the callable that veil's long functions take.
    """

    def __init__(self) -> None:
        self._console = error_console()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def report(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a stage are finished; a total of 0 means unknown."""
        first = stage not in self._tasks
        if self._bars is None:
            if first:
                self._tasks[stage] = TaskID(len(self._tasks))
                self._console.print(f"veil: {stage}", markup=False, highlight=False, soft_wrap=True)
            return
        if first:
            self._tasks[stage] = self._bars.add_task(stage, total=None)
        known = total if total > 1 or done else None
        self._bars.update(self._tasks[stage], completed=done, total=known)

    def __enter__(self) -> Reporter:
        if self._console.is_terminal:
            text = TextColumn("{task.description}", markup=False)
            columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
