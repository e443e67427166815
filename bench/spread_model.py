"""A model of made weights, cut by slots over devices: its parts, and a token's products on each as one CUDA graph."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch

from bench.load_gpus import Shared, packed
from bench.made_weights import MakingKernels
from veil.bundle.server_half import ServerModel
from veil.kernels.gpus import SpreadArray, SpreadWeights
from veil.kernels.interface import Array, GroupRows, Kernels, Rows
from veil.server.gpus import SpreadEngine, find_gpus


class Spread:
    """A model cut over devices, with one upload's shares."""

    def __init__(self, model: ServerModel, devices: Sequence[MakingKernels]) -> None:
        self.model, self.devices = model, devices
        self.engine = SpreadEngine.over(model, cast(Sequence[Kernels], devices))

    def take_shares(self) -> None:
        """Prepare the upload that answers need."""
        self.shared = Shared(self.engine)
        self.engine.kernels.synchronize()

    def within(self, place: int) -> AbstractContextManager[object]:
        """What makes a device the current one."""
        device = self.devices[place].device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def part(self, place: int, group: int) -> tuple[Array, Array, int, tuple[int, int]]:
        """A device's weights of a group, its shares [T, slots], the column that they begin at, and bits."""
        info = self.model.manifest.groups[group]
        weights = cast(SpreadWeights, self.engine.weights[group])
        shares = cast(SpreadArray, self.shared.shares[info.segment])
        return weights.parts[place], shares.parts[place], weights.columns[place], (info.input_bits, info.result_bits)

    def step(self, place: int) -> Callable[[], list[Array]]:
        """All products of one row on a device."""
        kernels, asked = self.devices[place], []
        for group in range(len(self.model.manifest.groups)):
            weights, shares, column, bits = self.part(place, group)
            if len(weights):
                asked.append((kernels.asarray(packed(self.model, group, 1)), weights, [Rows(shares, 0, 1)], column, bits))
        kernels.synchronize()
        return lambda: [kernels.answer(*own) for own in asked]

    def joined_s(self, place: int, repeats: int, ready: threading.Barrier) -> list[float]:
        """Seconds of passes of one row, each group by itself with its results fetched, begun with the other devices'."""
        kernels, asked, found = self.devices[place], [], []
        for group in range(len(self.model.manifest.groups)):
            weights, shares, column, bits = self.part(place, group)
            if len(weights):
                asked.append([GroupRows(packed(self.model, group, 1), weights, [Rows(shares, 0, 1)], column, bits)])
        for _ in range(repeats + 2):
            ready.wait(20)
            start = time.perf_counter()
            for own in asked:
                kernels.answer_groups(own)
            found.append(time.perf_counter() - start)
        return found[2:]


class Replay:
    """A device's step as one CUDA graph, recorded on a stream of that device; on a processor the step itself."""

    def __init__(self, spread: Spread, place: int) -> None:
        self._spread, self._place, self._step = spread, place, spread.step(place)
        self._gpu = spread.devices[place].device.type == "cuda"
        self.results: list[Array] = []
        if not self._gpu:
            self.results = self._step()
            return
        with self._spread.within(self._place):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step()
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self.results = self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self._before, self._after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Begin it."""
        if not self._gpu:
            begun = time.perf_counter()
            self._step()
            self._ms = 1e3 * (time.perf_counter() - begun)
            return
        with self._spread.within(self._place):
            self._before.record()
            self._graph.replay()
            self._after.record()

    def finish_ms(self) -> float:
        """Wait for it; the device's milliseconds."""
        if not self._gpu:
            return self._ms
        with self._spread.within(self._place):
            self._after.synchronize()
            return float(self._before.elapsed_time(self._after))


def making(device: str, gpus: int) -> list[MakingKernels]:
    """The kernels of so many devices, whose weights are made there."""
    found = [gpu.kernels for gpu in find_gpus(device, gpus)]
    real = found[0].name == "cuda" and torch.cuda.is_available()
    places = [torch.device("cuda", place) if real else torch.device("cpu") for place in range(gpus)]
    return [MakingKernels(kernels, place) for kernels, place in zip(found, places, strict=True)]
