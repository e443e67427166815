"""Where an engine's arithmetic happens: on arrays of this process, or on a CUDA device. Shares stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from veil.crypto.hint import Hint, HintRows
from veil.params import Params, packed_bytes
from veil.progress import Progress
from veil.seed import PublicSeed

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]

_STEP_BYTES = 128 << 10
"""Some 3 µs of reading."""
_PREFETCHED_BYTES = 8 << 20
"""Of one group's weights: caches have room for no more."""


class Arithmetic(Protocol):
    """The weights of all groups, where they are multiplied."""

    def own(self, share: Any) -> Any:
        """A copy of one row of what the hint prepared, to keep."""

    def reply(
        self, group: int, rows: U8, shares: Sequence[Any], input_bits: int, result_bits: int, *, serial: bool = False
    ) -> U8:
        """Packed ``W·b - h`` for packed rows [T, bytes] and their T shares [rows of the group].

        ``serial`` keeps host arithmetic on the calling thread.
        """

    def prefetch(self, group: int) -> Iterator[object]:
        """Steps, of a few µs each, that bring a group's weights nearer."""


class HostArithmetic:
    """Weights and shares as arrays; ``kernels`` is `veil.kernels.cpu` or `veil.kernels.reference`."""

    def __init__(self, weights: Sequence[I8], kernels: ModuleType) -> None:
        self._weights = weights
        self._kernels = kernels

    def own(self, share: U32) -> U32:
        """See `Arithmetic`."""
        return np.array(share)

    def reply(
        self, group: int, rows: U8, shares: Sequence[U32], input_bits: int, result_bits: int, *, serial: bool = False
    ) -> U8:
        """See `Arithmetic`."""
        weights = self._weights[group]
        empty = np.empty((0, len(weights)), dtype=np.uint32)
        h = shares[0][None] if len(shares) == 1 else np.stack(shares) if shares else empty
        packed: U8 = self._kernels.answer(rows, weights, h, input_bits, result_bits, serial=serial)
        return packed

    def prefetch(self, group: int) -> Iterator[object]:
        """See `Arithmetic`; the beginning comes last, because it is wanted first."""
        weights = self._weights[group]
        most = min(weights.size, _PREFETCHED_BYTES)
        for first in reversed(range(0, most, _STEP_BYTES)):
            yield self._kernels.read_lines(weights, first, min(most, first + _STEP_BYTES))


class DeviceArithmetic:
    """Weights and shares as tensors on the CUDA device; only packed rows cross."""

    def __init__(self, weights: Sequence[I8]) -> None:
        from veil.kernels import cuda

        self._cuda = cuda
        self.weights = [cuda.asarray(matrix) for matrix in weights]

    def own(self, share: Any) -> Any:
        """See `Arithmetic`."""
        return share.clone()

    def reply(
        self, group: int, rows: U8, shares: Sequence[Any], input_bits: int, result_bits: int, *, serial: bool = False
    ) -> U8:
        """See `Arithmetic`."""
        import torch

        weights = self.weights[group]
        if not shares:
            return np.empty((0, packed_bytes(len(weights), result_bits)), dtype=np.uint8)
        h = shares[0][None] if len(shares) == 1 else torch.stack(list(shares))
        packed: U8 = self._cuda.to_numpy(self._cuda.answer(self._cuda.asarray(rows), weights, h, input_bits, result_bits))
        return packed

    def prefetch(self, group: int) -> Iterator[object]:
        """See `Arithmetic`; a device's memory is near."""
        return iter(())


def arithmetic_for(weights: Sequence[I8], kernels: ModuleType) -> Arithmetic:
    """The online arithmetic on the device that ``kernels`` works on."""
    return DeviceArithmetic(weights) if kernels.name == "cuda" else HostArithmetic(weights, kernels)


def build_hint(
    params: Params,
    seed: PublicSeed,
    rows: dict[str, list[HintRows]],
    kernels: ModuleType,
    progress: Progress | None,
) -> tuple[Any, dict[str, U32]]:
    """The hint and the client's tables ``a'``, built on the device that ``kernels`` works on; see `Hint.build`."""
    if kernels.name == "cuda":
        from veil.crypto.device_hint import DeviceHint

        return DeviceHint.build(params, seed, rows, progress)
    return Hint.build(params, seed, rows, kernels, progress)
