"""The record of a measurement: frozen dataclasses that are written as JSON and read back, checked.

Seconds are seconds, sizes are bytes, and both are for one token (one row through the model) unless a name says otherwise.
A `Timing` is a median with the 10th and 90th percentile. Programs read ``token_s``, ``ratio`` and ``bytes_per_token``.
"""

from __future__ import annotations

import json
import statistics
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 1

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The median of ``count`` samples and what 80 % of them lie between, in seconds."""

    median_s: float
    low_s: float
    high_s: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Of at least one sample."""
        if len(samples) == 1:
            return cls(median_s=samples[0], low_s=samples[0], high_s=samples[0], count=1)
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(median_s=statistics.median(samples), low_s=tenths[0], high_s=tenths[-1], count=len(samples))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes, and its limits measured in the same run: bytes read and 32-bit multiply-adds into 64 bits a second.

    With a GPU, ``read_bytes_per_s`` is that of its memory and there is no multiply-add peak.
    """

    processor: str
    cores: int
    system: str
    memory_bytes: int
    read_bytes_per_s: float
    multiply_adds_per_s: float | None = None
    accelerator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model: its remote layers' shapes. A token's forward pass makes ``round_trips``, one for each group."""

    name: str
    origin: str
    parameters: int
    remote_weights: int
    remote_layers: int
    round_trips: int
    inputs: int
    outputs: int
    hidden_size: int
    shapes: tuple[tuple[int, int, int], ...]
    """(width, outputs, how many layers)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it was measured."""

    mode: str
    device: str
    prompt_rows: int
    new_tokens: int
    repeats: int
    threads: int
    masks_at_once: int
    fold_norms: str = "off"


@dataclass(frozen=True, kw_only=True)
class TokenSeconds:
    """A token's seconds: everything, the part after the token before it is known, plaintext float32, and the peer's."""

    total: float
    online: float
    plaintext: float | None = None
    peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """``plaintext_total`` and ``plaintext_online`` over plaintext; ``peer``: how many times faster than the peer.

    ``floor``: total seconds over the seconds that reading the bytes of `Floor` takes.
    """

    floor: float
    plaintext_total: float | None = None
    plaintext_online: float | None = None
    peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class BytesPerToken:
    """Bytes between client and server for a token, and what the tensors in clear float32 and the peer would take."""

    total: float
    up_ahead: float
    down_ahead: float
    up_online: float
    down_online: float
    clear_float32: float
    peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of a token's time. ``moment`` is ``ahead`` or ``online``, ``side`` is ``client``, ``server`` or ``both``."""

    name: str
    moment: str
    side: str
    token: Timing


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A row of a prompt of ``rows``: its mask made, its way through the model; and in plaintext."""

    rows: int
    row_s: float
    prepare_s: float
    online_s: float
    plaintext_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class RowsCost:
    """Seconds a row when ``rows`` masks are made at once and ``rows`` rows go through the model at once."""

    rows: int
    prepare_s: float
    online_s: float


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A step's share of what bounds it, or its time against a bound. ``bound`` says which; ``goal`` is what is aimed at."""

    name: str
    timing: Timing
    bound: str
    share: float | None = None
    goal: str = ""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Bytes that a token makes the processor read from memory, by what they are, and the seconds that takes."""

    weights_bytes: int
    hint_bytes: float
    digits_bytes: int
    masks_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory high-water while generating. In one process the server's is counted from its arrays, the client's is the rest.

    ``highest_bytes`` is this process's over the whole run: loading, plaintext, compiling.
    """

    separate_processes: bool
    server_bytes: int
    client_bytes: int
    server_arrays_bytes: int
    highest_bytes: int
    plaintext_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class LinkSample:
    """A token over a link with this round-trip time and bandwidth, measured with delays added, and by formula."""

    rtt_s: float
    bytes_per_s: float
    token_s: float
    formula_s: float
    round_trips: float


@dataclass(frozen=True, kw_only=True)
class PeerLayer:
    """One layer shape with the peer: how many the model has, and what a row costs.

    ``measured_outputs`` is less than ``outputs`` where time and bytes were scaled up from a narrower layer.
    """

    width: int
    outputs: int
    count: int
    measured_outputs: int
    encrypt_s: float
    multiply_s: float
    decrypt_s: float
    up_bytes: float
    down_bytes: float
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class Peer:
    """concrete-ml-extensions on the same machine: its token is the sum over the model's layers."""

    name: str
    version: str
    token_s: float
    bytes_per_token: float
    key_bytes: int
    layers: tuple[PeerLayer, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of `veil bench` on one model."""

    format: int
    commit: str
    versions: dict[str, str]
    machine: Machine
    settings: Settings
    parameters: dict[str, Any]
    model: Subject
    token_s: TokenSeconds
    ratio: Ratio
    bytes_per_token: BytesPerToken
    phases: tuple[Phase, ...]
    token_spread: dict[str, Timing]
    prompt: Prompt
    by_rows: tuple[RowsCost, ...]
    limits: tuple[Limit, ...]
    floor: Floor
    memory: Memory
    link: tuple[LinkSample, ...]
    peer: Peer | None = None

    def phase(self, name: str) -> float:
        """Seconds a token of one phase, 0 where it did not occur."""
        return next((phase.token.median_s for phase in self.phases if phase.name == name), 0.0)


def to_json(record: Any) -> str:
    """A record as JSON text; numbers keep six significant digits."""
    return json.dumps(_rounded(asdict(record)), indent=1) + "\n"


def write(record: Any, path: Path) -> None:
    """Write a record, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(record))


def read(path: Path, kind: type[T]) -> T:
    """The record in a file; `ValueError` says what does not fit."""
    try:
        value = json.loads(path.read_text())
        if value.get("format") != FORMAT:
            raise ValueError(f"format {value.get('format')!r}, expected {FORMAT}")
        return _parse(kind, value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of 'veil bench' that this version reads ({error})") from None


def _parse(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value)
    if origin is tuple:
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_parse(item, part) for item, part in zip(each, value, strict=True))
    if origin is dict:
        return {str(name): _parse(arguments[1], part) for name, part in value.items()}
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(value) - {field.name for field in fields(kind)}
        if unknown:
            raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
        return typing.cast(Any, kind)(**{name: _parse(hints[name], part) for name, part in value.items()})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and not isinstance(value, kind):
        raise ValueError(f"{value!r} where {kind.__name__} was expected")
    return value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
