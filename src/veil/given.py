"""Arguments of the wrong type, told in one line where they are given and not where they are first used."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def path_given(name: str, value: object) -> Path:
    """A path as `Path`; `TypeError` for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise _wrong(name, value, "a path")
    return Path(value)


def text_given(name: str, value: object, expected: str = "text") -> str:
    """A str as it is; `TypeError` for anything else."""
    if not isinstance(value, str):
        raise _wrong(name, value, expected)
    return value


def named_given(value: str, expected: str) -> tuple[str | None, str]:
    """``NAME=WHAT`` as name and what, ``WHAT`` without a name; a path that exists has none, whatever is in it.

    ``expected`` is the form that the `ValueError` for half of it shows.
    """
    name, equals, what = value.partition("=")
    if not equals or "/" in name or Path(value).exists():
        return None, value
    if not name or not what:
        raise ValueError(f"{value!r} is not {expected}")
    return name, what


def count_given(name: str, value: object, least: int = 0) -> int:
    """A whole number of any type, of ``least`` at least; `TypeError`, `ValueError`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    if value < least:
        raise ValueError(f"{name} is {int(value)}, expected {least} or more")
    return int(value)


def seconds_given(name: str, value: object, *, zero: bool = False) -> float:
    """A time above 0, or from 0 on; `TypeError`, `ValueError`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, value, "a number of seconds")
    if not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name} is {value}, expected seconds {'from 0 on' if zero else 'above 0'}")
    return float(value)


def flag_given(name: str, value: object) -> bool:
    """True or False; `TypeError` for anything else."""
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def one_given(name: str, value: object, kind: type, example: str, *, optional: bool = False) -> None:
    """`TypeError` unless it is of this kind, or None where it is ``optional``; ``example`` says how one is made."""
    if not isinstance(value, kind) and not (optional and value is None):
        raise _wrong(name, value, f"a veil.{kind.__name__} such as {example}")


def function_given(name: str, value: F | None, expected: str) -> F | None:
    """A function or None; `TypeError` for anything else."""
    if value is not None and not callable(value):
        raise _wrong(name, value, f"{expected} or None")
    return value


def _wrong(name: str, value: object, expected: str) -> TypeError:
    shown = " ".join(repr(value).split())
    what = (
        shown
        if value is None or (isinstance(value, str | int | float) and len(shown) <= 40)
        else f"a {type(value).__name__}"
    )
    return TypeError(f"{name} is {what}, expected {expected}")
