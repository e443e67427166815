"""Records on disk: written as JSON, read back, checked field by field."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from veil.bench.load_record import LoadSeries
from veil.bench.record import FORMAT, Record, SignalSeries, WidthSeries

T = TypeVar("T")

AnyRecord = Record | WidthSeries | SignalSeries | LoadSeries

KINDS: dict[str, type[AnyRecord]] = {"token": Record, "widths": WidthSeries, "signal": SignalSeries, "load": LoadSeries}


def to_json(record: AnyRecord) -> str:
    """A record as JSON text; numbers keep six significant digits."""
    return json.dumps(_rounded(asdict(record)), indent=1) + "\n"


def write(record: AnyRecord, path: Path) -> None:
    """Write a record, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(record))


def read(path: Path, kind: type[T]) -> T:
    """The record of this kind in a file; `ValueError` says what does not fit."""
    found = read_any(path)
    if not isinstance(found, kind):
        raise ValueError(f"{path} is a {type(found).__name__}, expected a {kind.__name__}")
    return found


def read_any(path: Path) -> AnyRecord:
    """The record in a file, of whatever kind; `ValueError` says what does not fit."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("format") != FORMAT:
            raise ValueError(f"format {value.get('format')!r}, expected {FORMAT}")
        if value.get("kind") not in KINDS:
            raise ValueError(f"kind {value.get('kind')!r}, expected one of {', '.join(KINDS)}")
        return typing.cast(AnyRecord, _parse(KINDS[value["kind"]], value))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of 'veil bench' that this version reads ({error})") from None


def _parse(kind: Any, value: Any) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value)
    if origin is tuple:
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_parse(item, part) for item, part in zip(each, value, strict=True))
    if origin is dict:
        return {str(name): _parse(arguments[1], part) for name, part in value.items()}
    if is_dataclass(kind):
        assert isinstance(kind, type)
        hints = typing.get_type_hints(kind)
        unknown = set(value) - {field.name for field in fields(kind)}
        if unknown:
            raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
        return kind(**{name: _parse(hints[name], part) for name, part in value.items()})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} where {kind.__name__} was expected")
    return value


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
