"""Weights that a formula gives: each device makes the rows that it needs, and a processor makes a few of them again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from veil.bench.load_shapes import MODELS, manifest_of
from veil.bundle.server_half import I8, ServerModel
from veil.kernels.interface import Array, Kernels
from veil.seed import PublicSeed

_AT_ONCE = 1 << 26
"""Words that are made together on a device."""


@dataclass(frozen=True)
class MadeRows:
    """Rows of a group's weights [rows, width] int8, of which nothing is in memory: what a `ServerModel` needs of them."""

    group: int
    first: int
    rows: int
    width: int
    ndim = 2
    dtype = np.dtype(np.int8)

    @property
    def shape(self) -> tuple[int, int]:
        """As an array's."""
        return self.rows, self.width

    @property
    def size(self) -> int:
        """As an array's."""
        return self.rows * self.width

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, wanted: slice) -> MadeRows:
        first, last, _ = wanted.indices(self.rows)
        return MadeRows(self.group, self.first + first, max(0, last - first), self.width)

    def tensor(self, device: torch.device) -> torch.Tensor:
        """The weights, made on a device some rows at a time."""
        out = torch.empty(self.shape, dtype=torch.int8, device=device)
        columns, step = torch.from_numpy(_columns(self.width)).to(device), max(1, _AT_ONCE // self.width)
        for first in range(0, self.rows, step):
            keys = torch.from_numpy(self[first : first + step]._keys()).to(device)
            out[first : first + step] = _mixed(keys[:, None] + columns)
        return out

    def array(self) -> NDArray[np.int8]:
        """The same by NumPy, all at once: for a few rows."""
        found: NDArray[np.int8] = _mixed(self._keys()[:, None] + _columns(self.width)).astype(np.int8)
        return found

    def _keys(self) -> NDArray[np.int32]:
        rows = np.arange(self.first, self.first + self.rows, dtype=np.uint64)
        return (rows * np.uint64(0x9E3779B1) + np.uint64(self.group * 0x85EBCA6B)).astype(np.uint32).view(np.int32)


def _columns(width: int) -> NDArray[np.int32]:
    return (np.arange(width, dtype=np.uint64) * np.uint64(0xC2B2AE35)).astype(np.uint32).view(np.int32)


def _mixed(x: Any) -> Any:
    """Keys int32, an array or a tensor that is written over, as weights from -127 to 127; all is modulo 2^32."""
    x ^= x >> 15
    x *= 0x2C1B3C6D
    x ^= x >> 12
    x *= 0x297A2D39
    x >>= 24
    x += x == -128
    return x


def made_model(name: str, groups: int | None = None) -> ServerModel:
    """A server half of a model's shapes whose weights are `MadeRows`; of the body only the first so many groups."""
    shapes = MODELS[name]
    sizes = [*shapes.body[:groups], shapes.head]
    weights = tuple(cast(I8, MadeRows(group, 0, rows, width)) for group, (width, rows) in enumerate(sizes))
    return ServerModel(shapes.params, OnceSeed(bytes(range(32))), manifest_of(shapes.params, sizes), weights)


class OnceSeed(PublicSeed):
    """A seed that keeps the last words: several devices that build their hints side by side ask for the same."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed)
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], NDArray[np.uint32]] = {}

    def words(self, label: str, count: int) -> NDArray[np.uint32]:
        """See `PublicSeed.words`."""
        with self._lock:
            if (label, count) not in self._kept:
                if len(self._kept) >= 16:
                    del self._kept[next(iter(self._kept))]
                self._kept[label, count] = super().words(label, count)
            return self._kept[label, count]


class MakingKernels:
    """A device's kernels, whose weights are made on it."""

    def __init__(self, kernels: Kernels, device: torch.device) -> None:
        self._kernels, self.device, self.name = kernels, device, kernels.name
        self.asks_cheaply, self.joins_groups = kernels.asks_cheaply, kernels.joins_groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def load_weights(self, weights: Sequence[MadeRows]) -> list[Array]:
        """See `interface.Kernels.load_weights`."""
        made = [own.tensor(self.device) for own in weights]
        return list(made) if self.name == "cuda" else self._kernels.load_weights([own.numpy() for own in made])
