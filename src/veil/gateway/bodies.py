"""What every request of the gateway has to be: JSON of known fields, without NaN, infinities and halves of characters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(strict=True)]
_MOST_VALUES = 1 << 17


class Request(BaseModel):
    """A part of a request; only fields that are named are taken. Others that are null say nothing and are left out."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name in cls.model_fields}


class Body(Request):
    """A whole request: JSON as it should be, without NaN, infinities and halves of characters."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: object) -> object:
        check_values(given)
        return given


def check_values(given: object) -> None:
    """`PydanticCustomError` for numbers and texts that JSON does not have, wherever they are, and for too many of them."""
    waiting, seen = [given], 0
    while waiting:  # places are looked for when something is wrong
        value = waiting.pop()
        seen += 1
        if seen + len(waiting) > _MOST_VALUES:
            first = _longest(given)
            context = {"place": first, "message": f"a request has at most {_MOST_VALUES:,} values besides token ids"}
            raise PydanticCustomError("not_json", "{message}", context)
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += [inner for inner in value if type(inner) is not int]
        elif _problem(value):
            place, message = next(_problems("", given))
            raise PydanticCustomError("not_json", "{message}", {"place": place, "message": message})


def _longest(given: object) -> str:
    """The field with the longest list."""
    lists = {name: len(value) for name, value in given.items() if isinstance(value, list)} if isinstance(given, dict) else {}
    return ascii(max(lists, key=lambda name: lists[name]))[1:-1] if lists else ""


def _problem(value: object) -> str:
    """What is wrong with a text or a number; empty if nothing is."""
    if isinstance(value, str) and not value.isascii() and not _is_whole(value):
        return "a text with half of a character (a lone surrogate) has no tokens"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN and infinities are no JSON, and a number past 1e308 is one"
    return ""


def _problems(place: str, value: object) -> Iterator[tuple[str, str]]:
    """Every place where something is wrong, and what."""
    inner: list[tuple[str, object]] = []
    if isinstance(value, dict):
        inner = [(_join(place, name), part) for name, item in value.items() for part in (name, item)]
    elif isinstance(value, list):
        inner = [(_join(place, index), item) for index, item in enumerate(value)]
    elif problem := _problem(value):
        yield place, problem
    for where, item in inner:
        yield from _problems(where, item)


def _join(place: str, name: object) -> str:
    part = str(name).encode("ascii", "backslashreplace").decode()
    return f"{place}.{part}" if place else part


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
