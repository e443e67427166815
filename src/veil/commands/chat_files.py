"""Conversations in files, and files in a conversation: `/save`, `/load` and `/attach` of `veil chat`."""

from __future__ import annotations

import json
import os
from pathlib import Path

MOST_BYTES = 1 << 20
_ROLES = ("system", "user", "assistant")

Turns = list[tuple[str, str]]


def save(path: Path, model: str, turns: Turns, *, replace: bool) -> None:
    """Write a conversation that only its user can read. `ValueError` for a file that exists and is not to be replaced."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if replace else os.O_EXCL)
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            messages = [{"role": role, "content": text} for role, text in turns]
            json.dump({"model": model, "messages": messages}, file, ensure_ascii=False, indent=1)
            file.write("\n")
    except FileExistsError:
        raise ValueError(f"{path} exists already; choose another name") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); check the path") from None


def load(path: Path) -> Turns:
    """A conversation that `save` wrote. `ValueError` for anything else."""
    try:
        said = json.loads(_text(path))["messages"]
        turns = [(turn["role"], turn["content"]) for turn in said]
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, ValueError) and "check the path" in str(error):
            raise
        raise ValueError(f"{path} is no conversation that /save wrote; choose another file") from None
    if not all(role in _ROLES and isinstance(text, str) for role, text in turns):
        raise ValueError(f"{path} is no conversation that /save wrote; choose another file")
    return turns


def attachment(path: Path) -> str:
    """A text file as a part of a message. `ValueError` for what is no text, or too much of it."""
    text = _text(path)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{path.name}:\n{fence}\n{text.rstrip()}\n{fence}"


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} has more than {MOST_BYTES:,} bytes; check the path, or attach a part of it")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text; check the path, or save it as text first") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the path") from None
