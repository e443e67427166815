"""The records of a measurement: frozen dataclasses that `veil.bench.files` writes as JSON and reads back, checked.

Seconds are seconds, sizes are bytes, and both are for one token (one row through the model) unless a name says otherwise.
A `Timing` is a median with the 10th and 90th percentile. Programs read ``token_s``, ``ratio``, ``prompts`` and
``bytes_per_token``. Three kinds of record share one format: a `Record`, a `WidthSeries` and a `SignalSeries`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FORMAT = 2


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
class RunSettings:
    """How it was measured. ``busy`` processes that want every core ran beside it, plaintext's time included."""

    mode: str
    device: str
    prompt_rows: int
    new_tokens: int
    repeats: int
    threads: int
    batch_rows: int
    fuse_norms: str = "off"
    busy: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenSeconds:
    """A token's seconds: everything, of it offline and online, plaintext float32, and the peer's.

    ``offline`` is the time of making a whole batch of full rows, both sides, over its rows.
    """

    total: float
    offline: float
    online: float
    plaintext: float | None = None
    peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """``plaintext_…``: a token's seconds over plaintext's; ``peer``: how many times faster than the peer.

    ``floor``: total seconds over the seconds that reading the bytes of `Floor` takes. ``clear_bytes``: bytes over those of
    the same tensors in clear float32.
    """

    floor: float
    clear_bytes: float
    plaintext_total: float | None = None
    plaintext_offline: float | None = None
    plaintext_online: float | None = None
    peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class BytesPerToken:
    """Bytes between client and server for a token, and what the tensors in clear float32 and the peer would take."""

    total: float
    up_offline: float
    down_offline: float
    up_online: float
    down_online: float
    clear_float32: float
    peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of a token's time. ``moment`` is ``offline`` or ``online``, ``side`` is ``client``, ``server`` or
    ``both``.
    """

    name: str
    moment: str
    side: str
    token: Timing


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A row of a prompt of ``rows``: made offline, and through the model; in plaintext; and the ratio of the two.

    ``offline_s`` is of whole batches without the head for all rows but the last. Online and plaintext are one forward pass
    that keeps the last row's logits and fills a key-value cache.
    """

    rows: int
    row_s: float
    offline_s: float
    online_s: float
    online: Timing
    plaintext_s: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A step's share of what bounds it, or its time against a bound. ``bound`` says which."""

    name: str
    timing: Timing
    bound: str
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Bytes that a token makes the processor read from memory, by what they are, and the seconds that takes."""

    weights_bytes: int
    hint_bytes: float
    public_bytes: float
    rows_bytes: int
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

    commit: str
    versions: dict[str, str]
    machine: Machine
    settings: RunSettings
    parameters: dict[str, object]
    model: Subject
    token_s: TokenSeconds
    ratio: Ratio
    bytes_per_token: BytesPerToken
    phases: tuple[Phase, ...]
    token_spread: dict[str, Timing]
    prompts: tuple[Prompt, ...]
    limits: tuple[Limit, ...]
    floor: Floor
    memory: Memory
    peer: Peer | None = None
    format: int = FORMAT
    kind: str = "token"

    def phase(self, name: str) -> float:
        """Seconds a token of one phase, 0 where it did not occur."""
        return next((phase.token.median_s for phase in self.phases if phase.name == name), 0.0)

    def prompt(self, rows: int) -> Prompt | None:
        """The prompt of this many rows, if it was measured."""
        return next((prompt for prompt in self.prompts if prompt.rows == rows), None)


@dataclass(frozen=True, kw_only=True)
class WidthPoint:
    """One width: the model and its token."""

    model: Subject
    token_s: TokenSeconds
    ratio: Ratio
    prompts: tuple[Prompt, ...]
    phases: tuple[Phase, ...]
    highest_bytes: int


@dataclass(frozen=True, kw_only=True)
class WidthSeries:
    """One run of ``veil bench --widths``; the machine is as it was for the last width."""

    commit: str
    versions: dict[str, str]
    machine: Machine
    settings: RunSettings
    points: tuple[WidthPoint, ...]
    format: int = FORMAT
    kind: str = "widths"


@dataclass(frozen=True, kw_only=True)
class SignalPoint:
    """Signal to noise of one encrypted layer of this input width, in decibels: measured on its outputs, and predicted.

    ``largest_slot_db`` is the prediction for the output of the largest norm, which the bits of each value on the wire are
    chosen for; ``error_ratio`` is the measured deviation of the error over the predicted one.
    """

    width: int
    slots: int
    rows: int
    input_bits: int
    result_bits: int
    measured_db: float
    predicted_db: float
    largest_slot_db: float
    error_ratio: float


@dataclass(frozen=True, kw_only=True)
class SignalSeries:
    """One run of ``veil bench --signal``: Gaussian inputs and weights, real encryption."""

    commit: str
    versions: dict[str, str]
    device: str
    parameters: dict[str, object]
    points: tuple[SignalPoint, ...]
    format: int = FORMAT
    kind: str = "signal"
