"""A model too large for one GPU, cut by slots over several: load, memory, masks, a token's work, samples by a processor.

    python -m bench four_gpus [--device cuda] [--model llama-70b] [--gpus 4] [--out bench/results/four-gpus.json]

Weights are a formula's: each GPU makes the rows that it holds, and the host never has them. A model of the same shapes with
one layer goes first, so that kernels are compiled before anything is timed. A token's work is each GPU's products of all
groups as one CUDA graph, all GPUs at the same time. The record is written after each part; a part that fails is a note.
"""

from __future__ import annotations

import argparse
import gc
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.load_gpus import packed
from bench.made_weights import made_model
from bench.record import Measurement, Record
from bench.spread_model import Replay, Spread, making
from bench.spread_samples import differences, sampled_groups
from veil.kernels.interface import Array, Rows
from veil.wire.messages import BatchUpload

_REPEATS = 30
_FEW = 10
_WARM_GROUPS = 4


class Measured:
    """The parts of a run, and the record that they go to."""

    def __init__(self, name: str, device: str, gpus: int, out: Path) -> None:
        told = {"device": device, "model": name, "gpus": gpus}
        self.begun, self.out = time.monotonic(), out
        self.record = Record(benchmark="four_gpus", parameters=told)
        self.name = name
        self.devices = making(device, gpus)
        self.cuda = self.devices[0].device.type == "cuda"
        if self.cuda:
            self.record.notes.append(f"{gpus} × {torch.cuda.get_device_name()}")

    def part(self, told: str, step: Callable[[], None]) -> bool:
        """Run a part, note its error, write the record; whether it went well."""
        try:
            step()
            well = True
        except Exception as error:
            traceback.print_exc()
            self.record.notes.append(f"{told}: {type(error).__name__}: {error}"[:500])
            well = False
        self.record.write(self.out)
        print(f"{time.monotonic() - self.begun:6.1f} s  {told}{'' if well else ': FAILED'}", flush=True)
        return well

    def add(self, name: str, value: float, unit: str, **more: Any) -> None:
        """A row of one value."""
        self.record.add(Measurement(name=name, value=value, unit=unit, **more))

    def warm(self) -> None:
        """Everything once with one layer: first on each device alone, as compilers share little between threads."""
        model = made_model(self.name, _WARM_GROUPS)
        if self.cuda:
            for device in self.devices:
                Spread(model, [device])
        spread = Spread(model, self.devices)
        spread.take_shares()
        for group in range(len(model.manifest.groups)):
            spread.shared.answer(group, packed(model, group, 3))
        for place in range(len(self.devices)):
            replay = Replay(spread, place)
            replay.start()
            replay.finish_ms()
            del replay
            if self.devices[place].joins_groups:
                spread.joined_s(place, 1, threading.Barrier(1))
        spread.engine.kernels.synchronize()
        del spread
        self.clear()

    def clear(self) -> None:
        """Give memory back, and begin to count anew."""
        gc.collect()
        for own in self.devices if self.cuda else []:
            with torch.cuda.device(own.device):
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    def load(self) -> None:
        """Weights and hint on all devices."""
        model, start = made_model(self.name), time.perf_counter()
        self.spread = Spread(model, self.devices)
        self.spread.engine.kernels.synchronize()
        self.add("weights made and hint built, all GPUs at once", time.perf_counter() - start, "s")
        weights = sum(own.size for own in model.weights)
        self.add("int8 weights, in all", weights / 1e9, "GB", bytes=weights)
        self.add("hint, in all", self.spread.engine.hint.nbytes / 1e9, "GB", bytes=self.spread.engine.hint.nbytes)
        self.memory("loaded")

    def memory(self, told: str) -> None:
        """What each GPU holds, and the most that it held."""
        for place, own in enumerate(self.devices if self.cuda else []):
            free, total = torch.cuda.mem_get_info(own.device)
            held, most = torch.cuda.memory_allocated(own.device), torch.cuda.max_memory_allocated(own.device)
            self.add(f"GPU {place}, {told}: in use of {total / 1e9:.0f} GB", (total - free) / 1e9, "GB", bytes=total - free)
            self.add(f"GPU {place}, {told}: held by tensors", held / 1e9, "GB", bytes=held)
            self.add(f"GPU {place}, {told}: most held by tensors", most / 1e9, "GB", bytes=most)
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.add(f"host, {told}: most resident", most / 1e9, "GB", bytes=most)

    def masks(self) -> None:
        """Batches decoded and prepared on all devices."""
        self.spread.take_shares()
        engine, upload = self.spread.engine, self.spread.shared.upload
        segments, rows = tuple(engine.model.manifest.segments), engine.model.params.T
        for count in (1, 4):
            samples = []
            for _ in range(4):
                start = time.perf_counter()
                engine.shares([engine.decode([BatchUpload(number, upload.data) for number in range(count)])], segments)
                engine.kernels.synchronize()
                samples.append(1e3 * (time.perf_counter() - start) / (count * rows))
            told = f"masks, a row, {count} batch{'es' * (count > 1)} at once"
            self.record.add(Measurement.of(told, samples[1:], "ms"))

    def token(self) -> None:
        """One row's products of all groups, as a graph on each device."""
        replays = [Replay(self.spread, place) for place in range(len(self.devices))]
        each: list[list[float]] = [[] for _ in replays]
        together: list[float] = []
        for repeat in range(_REPEATS + 3):
            start = time.perf_counter()
            for own in replays:
                own.start()
            found = [own.finish_ms() for own in replays]
            if repeat >= 3:
                together.append(1e3 * (time.perf_counter() - start))
                for samples, value in zip(each, found, strict=True):
                    samples.append(value)
        for place, samples in enumerate(each):
            self.record.add(Measurement.of(f"server's work for a token, GPU {place}, while all work", samples, "ms"))
        size = sum(own.size for own in self.spread.model.weights)
        told = f"server's work for a token, all {len(replays)} GPUs, from the first start to the last end"
        self.record.add(Measurement.of(told, together, "ms", target="≤ 12 ms for llama-70b", bytes=size))
        wrong = sum(self._graph_differences(place, own.results) for place, own in enumerate(replays))
        self.add("results of graphs that differ from the engine's, sampled groups", wrong, "", target="0")

    def _graph_differences(self, place: int, results: Sequence[Array]) -> int:
        spread, wrong = self.spread, 0
        kernels, number = spread.devices[place], 0
        sampled = sampled_groups(spread.model)
        for group in range(len(spread.model.manifest.groups)):
            weights, shares, column, bits = spread.part(place, group)
            if not len(weights):
                continue
            if group in sampled:
                data = kernels.asarray(packed(spread.model, group, 1))
                right = kernels.answer(data, weights, [Rows(shares, 0, 1)], column, bits)
                wrong += not np.array_equal(kernels.to_numpy(right), kernels.to_numpy(results[number]))
            number += 1
        return wrong

    def joined(self) -> None:
        """The same from Python, each group by itself and fetched, a thread for each device."""
        count = len(self.devices)
        ready = threading.Barrier(count)
        with ThreadPoolExecutor(count) as threads:
            found = list(threads.map(lambda place: self.spread.joined_s(place, _FEW, ready), range(count)))
        last = [1e3 * max(times) for times in zip(*found, strict=True)]
        self.record.add(Measurement.of("a token's products fetched group by group, a thread for each GPU", last, "ms"))

    def python(self) -> None:
        """The same through the engine, by one thread."""
        samples = [1e3 * value for value in self.spread.shared.token_s(1)]
        self.record.add(
            Measurement.of("a token's products fetched group by group, by the engine's one thread", samples, "ms")
        )

    def samples(self) -> None:
        """Answers and shares of sampled slots, against the processor's."""
        answers, shares, slots = np.sum(
            [differences(self.spread, group) for group in sampled_groups(self.spread.model)], axis=0
        )
        self.add("sampled answers that differ from the processor's", float(answers), "", target="0")
        self.add("sampled shares that differ from the processor's", float(shares), "", target="0")
        self.add("sampled slots whose answers were compared, with 1 and 3 rows", float(slots), "")


def run(name: str, device: str, gpus: int, out: Path) -> Record:
    """Measure everything; the record."""
    warming = subprocess.Popen([sys.executable, "-c", "from veil.kernels.warm import warm_up; warm_up()"])
    try:
        measured = Measured(name, device, gpus, out)
        measured.part("one layer, to compile", measured.warm)
        if measured.part("loaded", measured.load) and measured.part("masks", measured.masks):
            measured.part("a token by graphs", measured.token)
            measured.part("the processor's kernels are there", lambda: _finished(warming))
            measured.part("samples", measured.samples)
            if measured.devices[0].joins_groups:
                measured.part("a token by threads", measured.joined)
            measured.part("a token by the engine", measured.python)
            measured.part("memory", lambda: measured.memory("after all"))
        return measured.record
    finally:
        warming.kill()
        warming.wait()


def _finished(process: subprocess.Popen[bytes]) -> None:
    process.wait(timeout=40)


def main() -> None:
    """Measure, write the record and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="llama-70b")
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("bench/results/four-gpus.json"))
    given = parser.parse_args()
    run(given.model, given.device, given.gpus, given.out).show()


if __name__ == "__main__":
    main()
