"""Options that go together, as one parameter of a command: a dataclass with an option in each field."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import ParamSpec, cast, get_type_hints

P = ParamSpec("P")


def grouped(command: Callable[P, None]) -> Callable[..., None]:
    """The command as typer sees it: every parameter whose type is a dataclass stands for the options in its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Callable[..., object], list[str]]] = {}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            own = get_type_hints(kind, include_extras=True)
            groups[name] = kind, [field.name for field in fields(kind)]
            parameters += [
                inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=own[field.name])
                for field in fields(kind)
            ]
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=kind))

    run = cast("Callable[..., None]", command)

    @functools.wraps(command)
    def expanded(**values: object) -> None:
        for name, (kind, names) in groups.items():
            values[name] = kind(**{each: values.pop(each) for each in names})
        run(**values)  # what the signature below says

    del expanded.__wrapped__  # typer would look behind the signature
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return expanded
