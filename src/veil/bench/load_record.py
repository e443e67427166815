"""What `veil bench load` measured, typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veil.bench.record import FORMAT


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Median, 95th and 99th percentile of ``count`` samples, in seconds."""

    median_s: float
    p95_s: float
    p99_s: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Percentiles | None:
        """Of at least one sample; None of none."""
        if not samples:
            return None
        ordered = sorted(samples)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(median_s=at(0.5), p95_s=at(0.95), p99_s=at(0.99), count=len(ordered))


@dataclass(frozen=True, kw_only=True)
class MessageStages:
    """Where a message's time went, mean seconds of one: in the server, and the rest: both ways, the kernel, the generator.

    ``check`` is parsing, checksum, digest and claim; ``wait`` until its product begins; ``product`` the product that
    answered it, which may have answered others too; ``reply`` sealing and sending.
    """

    check_s: float
    wait_s: float
    product_s: float
    reply_s: float
    elsewhere_s: float
    rows_a_product: float


@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """So many clients at a round-trip time that the generator adds.

    ``token`` is a pass of ``rows`` rows through every group. ``first`` is from the first call to the end of the first pass,
    with everybody coming at once. ``starved`` is the share of the clients' time in which they waited for prepared rows.
    ``prompt`` is the pass of a prompt beside them. ``server_cpu`` and ``generator_cpu`` are cores kept busy.
    """

    clients: int
    rtt_s: float
    rows: int
    seconds: float
    tokens_per_s: float
    messages_per_s: float
    starved: float
    generator_cpu: float
    message: Percentiles | None = None
    token: Percentiles | None = None
    first: Percentiles | None = None
    prompt: Percentiles | None = None
    prompt_rows: int = 0
    stages: MessageStages | None = None
    server_cpu: float | None = None
    gpu: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoadSeries:
    """One run of ``veil bench load``. ``server`` is its address, or the device of one that the run started itself."""

    commit: str
    versions: dict[str, str]
    machine: str
    bundle: str
    round_trips: int
    server: str
    processes: int
    points: tuple[LoadPoint, ...]
    format: int = FORMAT
    kind: str = "load"
