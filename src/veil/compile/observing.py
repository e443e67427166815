"""What calibration sees: the float model runs once, and each remote layer's inputs are noted as they go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from veil.errors import ModelChanged, RemoteWeightError
from veil.runtime.layers import Observer, RemoteLayer

F32 = NDArray[np.float32]
_KEPT_ROWS = 512


@dataclass(eq=False)
class SeenInputs:
    """What calibration saw a layer read: the first tensor's id, the largest row norm, and some rows."""

    tensor: int
    largest: float = 0.0
    rows: F32 | None = None

    def add(self, x: torch.Tensor) -> None:
        """Note rows [..., width]; token ids leave no rows, and count as one of norm 1."""
        if not x.is_floating_point():
            self.largest = max(self.largest, 1.0)
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        if not len(rows):
            return
        largest = float(rows.float().norm(dim=1).max())
        if not math.isfinite(largest):
            raise ValueError("NaN or infinity")
        self.largest = max(self.largest, largest)
        kept = _thinned(rows).to(device="cpu", dtype=torch.float32)
        if self.rows is not None:
            kept = _thinned(torch.cat([torch.from_numpy(self.rows), kept]))
        self.rows = kept.numpy()

    def norm(self, divisors: F32 | None) -> float:
        """The largest norm of a row over ``divisors`` [width], of the rows that were kept: the longest is one of them."""
        if divisors is None or self.rows is None:
            return self.largest
        return float(np.linalg.norm(self.rows / divisors, axis=1).max())


def _thinned(rows: torch.Tensor) -> torch.Tensor:
    """A copy of up to `_KEPT_ROWS` rows, evenly spread, and the longest."""
    if len(rows) <= _KEPT_ROWS:
        return rows.clone()
    places = torch.linspace(0, len(rows) - 1, _KEPT_ROWS, dtype=torch.float64, device="cpu").long()
    places[-1] = int(rows.float().norm(dim=1).argmax())
    return rows[places.to(rows.device)]


def _check_finite(layers: dict[str, RemoteLayer]) -> None:
    """`ValueError` that names a layer whose weight is not finite: what comes out of it reaches others in calibration."""
    for name, layer in layers.items():
        weight = getattr(layer.inner, "weight", None)
        if isinstance(weight, torch.Tensor) and not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name}: the weight holds NaN or infinity")


def calibrate(layers: dict[str, RemoteLayer], run: Callable[[], object]) -> dict[str, SeenInputs]:
    """What each layer read, in calling order."""
    seen: dict[str, SeenInputs] = {}
    rows: dict[int, SeenInputs] = {}
    alive: list[torch.Tensor] = []

    def watch(name: str) -> Observer:
        def observe(x: torch.Tensor, out: torch.Tensor) -> None:
            alive.append(x)
            first = name not in seen
            if first and id(x) in rows:  # a layer of the same group has noted it
                seen[name] = replace(rows[id(x)])
                return
            own = seen.setdefault(name, SeenInputs(id(x)))
            try:
                own.add(x)
            except ValueError:
                _check_finite(layers)
                raise ValueError(
                    f"NaN or infinity reached {name!r} in calibration; give inputs that the float model can compute with"
                ) from None
            if first:
                rows[id(x)] = replace(own)

        return observe

    with _observed(layers, watch), torch.no_grad():
        try:
            with _withheld(layers):
                run()
        except (ModelChanged, RemoteWeightError):  # it may change weights once, in its first pass
            run()
            for kept in (seen, rows, alive):
                kept.clear()
            with _withheld(layers):
                run()
    return seen


@contextmanager
def _withheld(layers: dict[str, RemoteLayer]) -> Iterator[None]:
    """Weights cannot be read inside the block, so that a model calls its layers where it could go around them."""
    try:
        for layer in layers.values():
            layer.withholds = True
        yield
    finally:
        for layer in layers.values():
            layer.withholds = False


@contextmanager
def _observed(layers: dict[str, RemoteLayer], watch: Callable[[str], Observer]) -> Iterator[None]:
    observers = {name: watch(name) for name in layers}
    try:
        for name, layer in layers.items():
            layer.observers.append(observers[name])
        yield
    finally:
        for name, layer in layers.items():
            layer.observers.remove(observers[name])
