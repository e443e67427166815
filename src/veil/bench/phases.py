"""Measuring encrypted generation: masks made ahead, tokens online, each split into phases that add up to its time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from veil.bench.generation import Times, generate, random_prompt
from veil.bench.machine import ReadProbe
from veil.bench.record import Phase, RowsCost, Timing
from veil.bench.sides import STATIC_CACHE, Sides
from veil.bench.watch import Spent, Watch
from veil.progress import Progress

PHASES = {
    "client masks": ("ahead", "client"),
    "expand": ("ahead", "server"),
    "hint product": ("ahead", "server"),
    "combine": ("ahead", "server"),
    "take and keep": ("ahead", "server"),
    "client encrypt": ("online", "client"),
    "online product": ("online", "server"),
    "transport": ("online", "both"),
    "client decrypt": ("online", "client"),
    "client layers": ("online", "client"),
}
"""Moment and side of each phase, in the order in which they happen.

*client masks*: keys, secrets, ``A·s + e`` and shares of a mask. *take and keep*: what the server (and in mode ``remote``
the network) does to a mask beside the arithmetic. *transport*: everything between a remote layer's call and its output
that is not a kernel: Python, packing, copies, the network. *client layers*: every layer that is not remote.
"""

CARD_PHASES = {name: where for name, where in PHASES.items() if where[0] == "ahead"} | {"whole pass": ("online", "both")}
"""The phases of both halves on one card, where a token's pass is one graph that is not taken apart."""

ROWS = (1, 2, 4, 8, 16, 32, 64)
PROBE_BYTES = 1 << 28

Parts = Mapping[str, float]


@dataclass
class Samples:
    """What was measured: seconds a mask and a token, and each one's parts."""

    ahead: list[float] = field(default_factory=list)
    ahead_parts: list[Parts] = field(default_factory=list)
    online: list[float] = field(default_factory=list)
    online_parts: list[Parts] = field(default_factory=list)
    online_bandwidths: list[float] = field(default_factory=list)
    prompt_s: list[float] = field(default_factory=list)
    prompt_masks_s: list[float] = field(default_factory=list)

    def phases(self) -> tuple[Phase, ...]:
        """The phases' timings; in two processes the server's product is known a generation at a time."""
        found = []
        known = CARD_PHASES if "whole pass" in self.online_parts[0] else PHASES
        for name, (moment, side) in known.items():
            parts = self.ahead_parts if moment == "ahead" else self.online_parts
            found.append(Phase(name=name, moment=moment, side=side, token=Timing.of([part[name] for part in parts])))
        return tuple(found)


class OnePass(NamedTuple):
    """One pass over Ĥ for one mask, and the bandwidth just before it."""

    seconds: float
    bytes_per_s: float


class Meter:
    """Measures one `Sides`. Masks are counted, so that a batch is a whole epoch where it should be one."""

    def __init__(self, sides: Sides, prompt_rows: int, new_tokens: int) -> None:
        self.sides = sides
        self.hybrid = sides.hybrid
        self.prompt = random_prompt(sides.hybrid.model, prompt_rows)
        self.new_tokens = new_tokens
        self._epoch = sides.hybrid.params.masks_per_epoch
        self._probe = None if sides.device == "cuda" else ReadProbe(PROBE_BYTES)
        self._settings = STATIC_CACHE if sides.on_card else {}

    def generations(self, repeats: int, progress: Progress) -> Samples:
        """Some generations with every mask made ahead, after a short one that warms caches."""
        samples = Samples()
        generate(self.hybrid.model, random_prompt(self.hybrid.model, 2), 2, **self._settings)
        with self.sides.watch() as watch:
            for repeat in range(repeats):
                progress("encrypted generation", repeat, repeats)
                self._ahead(watch, samples)
                samples.online_bandwidths.append(self._bandwidth())
                self._online(watch, samples)
                samples.online_bandwidths.append(self._bandwidth())
        progress("encrypted generation", repeats, repeats)
        return samples

    def by_rows(self, counts: Sequence[int], repeats: int, progress: Progress) -> tuple[tuple[RowsCost, ...], list[OnePass]]:
        """Seconds a row for several rows at once (``counts`` grow from 1), and the passes over Ĥ for one mask.

        An epoch's keys are counted in equal parts for each of its masks.
        """
        made: dict[int, list[float]] = {rows: [] for rows in counts}
        through: dict[int, list[float]] = {rows: [] for rows in counts}
        passes: list[OnePass] = []
        keys: list[float] = []
        with self.sides.watch() as watch:
            for repeat in range(repeats):
                progress("rows at once", repeat, repeats)
                for rows in counts:
                    if rows == 1:
                        self.align()
                        keys.append(self._make(1))
                        bandwidth = self._bandwidth()
                    self._take(watch)
                    made[rows].append(self._make(rows) / rows)
                    if rows == 1:
                        passes.append(OnePass(self._take(watch)["hint product"].seconds, bandwidth))
                for rows in counts:
                    ids = random_prompt(self.hybrid.model, rows, seed=rows)
                    start = time.perf_counter()
                    with torch.no_grad():
                        self.hybrid.model(ids, logits_to_keep=1, use_cache=False).logits[0, -1, 0].item()  # it is done
                    through[rows].append((time.perf_counter() - start) / rows)
        progress("rows at once", repeats, repeats)
        key_s = max(0.0, _median(keys) - _median(made[1])) / self._epoch
        extra = {rows: key_s if rows < self._epoch else 0.0 for rows in counts}
        costs = [
            RowsCost(rows=rows, prepare_s=_median(made[rows]) + extra[rows], online_s=_median(through[rows]))
            for rows in counts
        ]
        return tuple(costs), passes

    def align(self) -> None:
        """Use up the sets of the current epoch."""
        left = -self.hybrid.stats.masks % self._epoch
        if left:
            self._make(left)

    def _ahead(self, watch: Watch, samples: Samples) -> None:
        rows = self.prompt.shape[1]
        before = self.hybrid.masks_ready.prompt_rows
        if rows - 1 > before:
            start = time.perf_counter()
            self.hybrid.reserve(rows_body=rows - 1)
            samples.prompt_masks_s.append((time.perf_counter() - start) / (rows - 1 - before))
        self.align()
        while self.hybrid.masks_ready.tokens < 1 + self.new_tokens or not samples.ahead:
            self._take(watch)
            seconds = self._make(self._epoch)
            spent = self._take(watch)
            samples.ahead.append(seconds / self._epoch)
            samples.ahead_parts.append({name: part / self._epoch for name, part in _ahead_parts(seconds, spent).items()})

    def _online(self, watch: Watch, samples: Samples) -> None:
        parts: list[Mapping[str, Spent]] = []

        def on_token() -> None:
            parts.append(watch.take())
            if len(parts) <= 2:  # what the server spends from now on, it spends on tokens after the first
                self.sides.server_spent()

        times = generate(self.hybrid.model, self.prompt, self.new_tokens, on_token, **self._settings)
        samples.prompt_s.append(times.prompt_s / self.prompt.shape[1])
        samples.online += times.tokens_s
        if self.sides.on_card:
            samples.online_parts += [{"whole pass": seconds} for seconds in times.tokens_s]
            return
        product = self.sides.server_spent()["online product"].seconds / self.new_tokens if self.sides.server else None
        samples.online_parts += _token_parts(times, parts[2:], product)

    def _bandwidth(self) -> float:
        return self._probe.bytes_per_s() if self._probe else float("nan")

    def _make(self, count: int) -> float:
        ready = self.hybrid.masks_ready.tokens
        start = time.perf_counter()
        self.hybrid.reserve(rows_full=ready + count)
        return time.perf_counter() - start

    def _take(self, watch: Watch) -> Mapping[str, Spent]:
        """What both sides spent since the last call."""
        here, there = watch.take(), self.sides.server_spent()
        return {name: there[name] if there[name].calls else here[name] for name in (*PHASES, "other side")}


def _ahead_parts(seconds: float, spent: Mapping[str, Spent]) -> Parts:
    """The phases of a batch of masks from what was watched; they add up to its seconds."""
    arithmetic = {name: spent[name].seconds for name in ("expand", "hint product", "combine")}
    other = spent["other side"].seconds
    rest = {"client masks": seconds - other, "take and keep": other - sum(arithmetic.values())}
    return arithmetic | rest


def _token_parts(times: Times, watched: list[Mapping[str, Spent]], product: float | None) -> list[Parts]:
    """The phases of each token; they add up to its seconds. ``product`` is the server's, where it was not watched here."""
    found: list[Parts] = []
    for seconds, spent in zip(times.tokens_s, watched, strict=True):
        kernels = {name: spent[name].seconds for name in ("client encrypt", "online product", "client decrypt")}
        if product is not None:
            kernels["online product"] = product
        remote = spent["remote layers"].seconds
        found.append(kernels | {"transport": remote - sum(kernels.values()), "client layers": seconds - remote})
    return found


def _median(values: list[float]) -> float:
    return Timing.of(values).median_s
