"""Text that goes in and out: UTF-8 through pipes and files on every system, and whatever a terminal can show."""

from __future__ import annotations

import io
import os
import sys


def use_utf8() -> None:
    """Read and write UTF-8 where a stream is a pipe or a file, as Windows would not.

    A terminal, and a stream whose encoding the environment sets (`PYTHONIOENCODING`), keep theirs; what that cannot
    write is written as an escape.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.encoding.lower().replace("-", "") == "utf8":
            continue
        if stream.isatty() or "PYTHONIOENCODING" in os.environ:
            if stream is not sys.stdin:
                stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8")


def read_input() -> str:
    """All of standard input. ValueError if it is not text in its encoding."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not {error.encoding} text (byte {error.start}); convert it") from None
