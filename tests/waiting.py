"""Waiting for what other threads and processes bring about: the one place where a test sleeps."""

from __future__ import annotations

import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_PAUSE_S = 0.002
_OURS = tuple(Path(__file__).parents[1] / room for room in ("src", "tests"))


def until(
    condition: Callable[[], object], within_s: float = 60.0, what: str = "", state: Callable[[], object] = str
) -> None:
    """Wait until ``condition()`` is true; `AssertionError` that says ``what`` was waited for when it is not in time.

    ``within_s`` is how long a busy machine may take, not how long it should: it costs nothing where all is well. Without
    ``what`` the condition's own words are said. The error shows ``state()`` too, and what every other thread did.
    """
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= end:
            said = f"{what or _words(condition)} did not come about in {within_s:g} s"
            raise AssertionError("\n".join(filter(None, [said, str(state()), *_others()])))
        time.sleep(_PAUSE_S)


def _words(condition: Callable[[], object]) -> str:
    """A function's name; a lambda's text and where it is written."""
    name = getattr(condition, "__name__", repr(condition))
    if name != "<lambda>":
        return name
    try:
        lines, first = inspect.getsourcelines(condition)
    except OSError:
        return name
    text = " ".join(line.strip() for line in lines)
    return f"{text!r} ({Path(inspect.getfile(condition)).name}:{first})"


def _others() -> list[str]:
    """A line for each other thread: its name and the innermost place of this project where it is."""
    frames, lines = sys._current_frames(), []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or thread is threading.current_thread():
            continue
        places = traceback.extract_stack(frame)
        ours = [place for place in places if any(Path(place.filename).is_relative_to(room) for room in _OURS)]
        if ours:
            at = ours[-1]
            lines.append(f"  {thread.name}: {Path(at.filename).name}:{at.lineno} in {at.name}: {at.line}")
    return lines
