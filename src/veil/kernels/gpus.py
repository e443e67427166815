"""Several devices behind the interface of one: each holds its slots of every group and their part of the hint.

All get the same few packed bytes of rows and uploads, and each answers its part; nothing travels between them. What a device
computes is what it would alone for a model with fewer outputs, so the parts side by side equal one device's answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from veil.kernels.interface import Array, Kernels, Rows
from veil.kernels.ring import Ring

CUT = 8
"""Slots are cut at multiples of this, so that packed results of any bits meet at whole bytes."""


class OnGpu:
    """Kernels of one device, each call inside a context that chooses the device, one product at a time."""

    def __init__(self, kernels: Kernels, within: Callable[[], AbstractContextManager[object]]) -> None:
        self._kernels, self._within = kernels, within
        self._turn = threading.Lock()
        self.name, self.asks_cheaply, self.joins_groups = kernels.name, kernels.asks_cheaply, kernels.joins_groups
        self.batches_at_once = kernels.batches_at_once

    def chosen(self) -> AbstractContextManager[object]:
        """See `interface.Kernels.chosen`."""
        return self._within()

    def __getattr__(self, name: str) -> object:
        method: Callable[..., object] = getattr(self._kernels, name)

        def call(*arguments: object, **options: object) -> object:
            with self._turn, self._within():
                return method(*arguments, **options)

        return call


@dataclass(frozen=True, eq=False)
class SpreadArray:
    """An array that is spread over devices, a part on each; its first axis is the same for all."""

    parts: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, place: object) -> SpreadArray:
        return SpreadArray(tuple(part[place] for part in self.parts))

    def reshape(self, *shape: int) -> SpreadArray:
        """Each part in another shape."""
        return SpreadArray(tuple(part.reshape(*shape) for part in self.parts))


@dataclass(frozen=True, eq=False)
class SpreadWeights:
    """A group's weights: each device's rows, the slot that they begin at in its own segment, and how many there are."""

    parts: tuple[Array, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, wanted: slice) -> SpreadWeights:
        """The first slots."""
        left, parts = len(range(*wanted.indices(len(self)))), []
        for part in self.parts:
            parts.append(part[: min(left, len(part))])
            left -= len(parts[-1])
        return SpreadWeights(tuple(parts), self.columns)


class SpreadKernels:
    """The server's online half of `interface.Kernels` over several devices; of weights, see `SpreadWeights`."""

    asks_cheaply = False
    joins_groups = False

    def __init__(self, devices: Sequence[Kernels]) -> None:
        self.devices = tuple(devices)
        self.name = f"{len(devices)} × {devices[0].name}"

    def asarray(self, values: NDArray[np.generic] | SpreadArray) -> SpreadArray:
        """The same values, of any shape and dtype, on each device."""
        return values if isinstance(values, SpreadArray) else SpreadArray(tuple(own.asarray(values) for own in self.devices))

    def to_numpy(self, values: SpreadArray) -> NDArray[np.uint8]:
        """Packed results of all devices side by side: [R, bytes] uint8."""
        parts = [own.to_numpy(part) for own, part in zip(self.devices, values.parts, strict=True)]
        return np.concatenate(parts, axis=1)

    def concatenate(self, parts: Sequence[SpreadArray]) -> SpreadArray:
        """Along the first axis, on each device."""
        each = zip(self.devices, zip(*(part.parts for part in parts), strict=True), strict=True)
        return SpreadArray(tuple(own.concatenate(list(some)) for own, some in each))

    def synchronize(self) -> None:
        """Wait for each device."""
        for own in self.devices:
            own.synchronize()

    def decode_batches(self, data: SpreadArray, ring: Ring) -> SpreadArray:
        """See `interface.Kernels.decode_batches`; each device decodes."""
        return SpreadArray(tuple(own.decode_batches(part, ring) for own, part in zip(self.devices, data.parts, strict=True)))

    def answer(
        self,
        data: SpreadArray,
        weights: SpreadWeights,
        shares: Sequence[Rows],
        column: int,
        bits: tuple[int, int],
        *,
        serial: bool = False,
    ) -> SpreadArray:
        """See `interface.Kernels.answer`; ``column`` is each device's own, which its weights say."""
        answers = []
        for place, own in enumerate(self.devices):
            mine = [Rows(cast(SpreadArray, part.material).parts[place], part.first, part.count) for part in shares]
            part = weights.parts[place]
            if not len(part):  # a group of few slots, or few of them asked for: this device has none
                answers.append(own.asarray(np.empty((len(data), 0), dtype=np.uint8)))
                continue
            answers.append(own.answer(data.parts[place], part, mine, weights.columns[place], bits, serial=serial))
        return SpreadArray(tuple(answers))

    def prefetch(self, weights: SpreadWeights) -> Iterator[object]:
        """Nothing: devices are near their memory."""
        return iter(())


def cuts(rows: int, devices: int, start: int = 0, block: int = CUT) -> list[int]:
    """Where a group's slots are cut for so many devices: device i has those from entry i up to entry i + 1.

    Cuts are where blocks of the segment begin, if the group's first slot, ``start``, lets results meet at whole bytes there.
    """
    step, lead = (block, start % block) if start % CUT == 0 else (CUT, 0)
    ends = [-(-(lead + rows * place // devices) // step) * step - lead if place else 0 for place in range(devices)]
    return [min(rows, max(0, end)) for end in ends] + [rows]
