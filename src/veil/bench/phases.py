"""Measuring encrypted generation: rows made offline, tokens online, prompts; each split into phases that add up to its time.

The session counts its own phases (`veil.client.stats.Stats.seconds`), and a server in a process of its own counts what it
computes; nothing is watched from outside.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, cast

from veil.bench.generation import generate, prefill, random_prompt
from veil.bench.machine import ReadProbe
from veil.bench.record import Phase, Prompt, Timing
from veil.bench.server_process import Spent
from veil.bench.sides import STATIC_CACHE, MeasuredSides
from veil.client.stats import Stats
from veil.progress import Progress

if TYPE_CHECKING:
    from veil.typing import LanguageModel

PHASES = {
    "rows, client": ("offline", "client"),
    "rows, server": ("offline", "server"),
    "rows, network": ("offline", "both"),
    "rows": ("offline", "both"),
    "encrypt": ("online", "client"),
    "product": ("online", "server"),
    "network": ("online", "both"),
    "decrypt": ("online", "client"),
    "layers": ("online", "client"),
    "whole pass": ("online", "both"),
}
"""Moment and side of each phase, in the order in which they happen.

*rows, client*: secrets, pads, shares μ and the encryption of the secret. *rows, server*: the shares h. *product*: the
server's part of a token. *layers*: every layer that is not remote, and what surrounds the others. The two *network*
phases are what a call to a server in another process takes beside its computing. On a GPU, whose work is not waited for
piece by piece, there are only *rows* and *whole pass*.
"""

PROBE_BYTES = 1 << 28

Parts = Mapping[str, float]


class MadeBatch(NamedTuple):
    """Seconds a row of batches that were made at once, their parts, and the rows."""

    row_s: float
    parts: Parts
    rows: int


@dataclass
class Samples:
    """What was measured: seconds a row made offline and a token online, each one's parts, and the bandwidth meanwhile."""

    offline: list[float] = field(default_factory=list)
    offline_parts: list[Parts] = field(default_factory=list)
    online: list[float] = field(default_factory=list)
    online_parts: list[Parts] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)

    def phases(self) -> tuple[Phase, ...]:
        """The phases' timings; in two processes the server's product is known a generation at a time."""
        found = []
        for name, (moment, side) in PHASES.items():
            parts = self.offline_parts if moment == "offline" else self.online_parts
            if name in parts[0]:
                found.append(Phase(name=name, moment=moment, side=side, token=Timing.of([part[name] for part in parts])))
        return tuple(found)


class PassCounts(NamedTuple):
    """The counters of a whole batch made offline and of a pass of one row."""

    offline: Stats
    online: Stats


class PhaseMeter:
    """Measures one `MeasuredSides`."""

    def __init__(self, sides: MeasuredSides, prompt_rows: int, new_tokens: int) -> None:
        self.sides = sides
        self.hybrid = sides.hybrid
        self.model = cast("LanguageModel", sides.hybrid.model)
        self.prompt = random_prompt(self.model, prompt_rows)
        self.new_tokens = new_tokens
        self._batch_rows = sides.hybrid.params.T
        self._probe = None if sides.device == "cuda" else ReadProbe(PROBE_BYTES)
        self._settings = STATIC_CACHE if sides.on_gpu else {}

    def generations(self, repeats: int, progress: Progress) -> Samples:
        """Some generations with every row made offline, after one that warms caches and has the memory that batches take."""
        self._generation(Samples())
        samples = Samples()
        for repeat in range(repeats):
            progress("encrypted generation", repeat, repeats)
            self._generation(samples)
        progress("encrypted generation", repeats, repeats)
        return samples

    def _generation(self, samples: Samples) -> None:
        made = len(samples.offline)
        self.hybrid.reserve(rows_body=self.prompt.shape[1] - 1)
        while self.hybrid.rows_ready.tokens < 1 + self.new_tokens or len(samples.offline) == made:
            batch = self.make(1, full=True)
            samples.offline.append(batch.row_s)
            samples.offline_parts.append(batch.parts)
        samples.bandwidths.append(self._bandwidth())
        self._online(samples)
        samples.bandwidths.append(self._bandwidth())

    def prompt_of(self, rows: int, repeats: int, full_row_s: float, progress: Progress) -> Prompt:
        """A prompt's row: whole batches without the head for all rows but the last, then one pass."""
        ids, offline, online = random_prompt(self.model, rows), [], []
        batches = -(-(rows - 1) // self._batch_rows)
        for repeat in range(repeats):
            progress(f"encrypted prompt of {rows} rows", repeat, repeats)
            if batches:
                offline.append(self.make(batches, full=False).row_s)
            self.hybrid.reserve(rows_full=1)
            online.append(prefill(self.model, ids) / rows)
        progress(f"encrypted prompt of {rows} rows", repeats, repeats)
        offline_s = ((rows - 1) * (median(offline) if offline else 0.0) + full_row_s) / rows
        through = Timing.of(online)
        return Prompt(
            rows=rows, row_s=offline_s + through.median_s, offline_s=offline_s, online_s=through.median_s, online=through
        )

    def counted(self) -> PassCounts:
        """The session's own counts of bytes and round trips."""
        stats = self.hybrid.stats
        before = stats.copy()
        self.make(1, full=True)
        offline, before = stats - before, stats.copy()
        prefill(self.model, random_prompt(self.model, 1))
        return PassCounts(offline, stats - before)

    def make(self, batches: int, *, full: bool) -> MadeBatch:
        """Make whole batches, with the head if ``full``."""
        hybrid, count = self.hybrid, batches * self._batch_rows
        before, ready = hybrid.stats.copy(), hybrid.rows_ready
        self._server()
        start = time.perf_counter()
        if full:
            hybrid.reserve(rows_full=ready.tokens + count)
        else:
            hybrid.reserve(rows_body=ready.prompt_rows + count)
        self.sides.finish()
        elapsed, spent = time.perf_counter() - start, hybrid.stats - before
        assert spent.rows_made == count
        parts = self._ahead_parts(elapsed, spent.seconds["prepare_server"])
        return MadeBatch(elapsed / count, {name: seconds / count for name, seconds in parts.items()}, count)

    def _ahead_parts(self, elapsed: float, other_side: float) -> Parts:
        if self.sides.on_gpu:
            return {"rows": elapsed}
        client = {"rows, client": elapsed - other_side}
        if self.sides.server is None:
            return client | {"rows, server": other_side}
        server = self._server().prepare
        return client | {"rows, server": server, "rows, network": other_side - server}

    def _online(self, samples: Samples) -> None:
        counts: list[Stats] = []

        def on_token() -> None:
            counts.append(self.hybrid.stats.copy())
            if len(counts) <= 2:  # what the server spends from now on, it spends on tokens after the first
                self._server()

        times = generate(self.model, self.prompt, self.new_tokens, on_token, settings=self._settings)
        product = self._server().evaluate / self.new_tokens
        samples.online += times.tokens_s
        spent = [(after - before).seconds for before, after in pairwise(counts[1:])]
        for elapsed, seconds in zip(times.tokens_s, spent, strict=True):
            samples.online_parts.append(self._online_parts(elapsed, seconds, product))

    def _online_parts(self, elapsed: float, spent: Mapping[str, float], product: float) -> Parts:
        if self.sides.on_gpu:
            return {"whole pass": elapsed}
        other_side, cipher = spent["online_server"], {name: spent[name] for name in ("encrypt", "decrypt")}
        parts = cipher | {"layers": elapsed - other_side - sum(cipher.values())}
        if self.sides.server is None:
            return parts | {"product": other_side}
        return parts | {"product": product, "network": other_side - product}

    def _server(self) -> Spent:
        """What the server's process spent since the last call; in one process the session's own count is exact."""
        return self.sides.server.take() if self.sides.server else Spent()

    def _bandwidth(self) -> float:
        return self._probe.bytes_per_s() if self._probe else float("nan")
