"""Two GPUs and a model's shapes: cut by slots and as copies, against one; the integers of one GPU and the processor.

    python -m bench load_gpus [--device cuda] [--model llama-8b] [--gpus 2] [--out bench/results/load-gpus.json]

First, in this process: all groups' answers of the model cut over the GPUs are compared with those of one GPU, byte by byte;
of one GPU, the hint's shares of sampled blocks and the answers of sampled groups with the processor's; and the server's work
for a token is timed for both, one group after the other with its results fetched. Then three servers, one after the other,
under load: one GPU and copies of the model with 1, 12, 32 and 64 clients, and the model cut with 1 and 12. It takes six to
eight minutes on two H200s; the record is written after each part, and ``--only`` chooses some.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.load import Situation, rows_of
from bench.record import Measurement, Record
from veil.bench.load import LoadRequest, measure, serving
from veil.bench.load_shapes import random_model
from veil.bench.load_user import LoadTraffic
from veil.bundle.header_file import common_fields
from veil.bundle.server_half import ServerModel
from veil.crypto.hint import HintRows, ServerHint
from veil.errors import VeilError
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Array, Rows
from veil.params import packed_bytes
from veil.server.engine import Claim, Engine
from veil.server.gpus import SpreadEngine, find_gpus
from veil.wire.messages import BatchUpload

_ROWS = 3
_TOKENS = 20
_SAMPLED_SLOTS = 4096
_CLIENTS = {"one GPU": (1, 12, 32, 64), "copies": (1, 12, 32, 64), "cut": (1, 12)}
"""By how the model lies on the GPUs."""


class Shared:
    """An engine with the shares of one upload, which every engine of the model gets the same of."""

    def __init__(self, engine: Engine) -> None:
        model = engine.model
        traffic = LoadTraffic.of("m", "", common_fields(model.params, model.seed, model.manifest), 1, 1)
        self.engine = engine
        self.upload = BatchUpload(0, np.frombuffer(traffic.upload, dtype=np.uint8))
        segments = tuple(model.manifest.segments)
        self.shares: dict[str, Array] = {
            name: found[0] for name, found in engine.shares([engine.decode([self.upload])], segments).items()
        }

    def answer(self, group: int, rows: NDArray[np.uint8], slots: int | None = None) -> NDArray[np.uint8]:
        """Packed results of rows [R, bytes], from the batch's first row on."""
        info = self.engine.model.manifest.groups[group]
        claim = Claim(group, rows, [Rows(self.shares[info.segment], 0, len(rows))], slots or info.rows)
        found: NDArray[np.uint8] = self.engine.kernels.to_numpy(self.engine.product([claim]))
        return found

    def token_s(self, rows: int) -> list[float]:
        """Seconds of passes through all groups, each with its results fetched."""
        data = [packed(self.engine.model, group, rows) for group in range(len(self.engine.model.manifest.groups))]
        found = []
        for _ in range(_TOKENS + 2):
            start = time.perf_counter()
            for group, own in enumerate(data):
                self.answer(group, own)
            found.append(time.perf_counter() - start)
        return found[2:]


def packed(model: ServerModel, group: int, rows: int) -> NDArray[np.uint8]:
    """Rows as a client sends them: uniform words, always the same for a group."""
    info = model.manifest.groups[group]
    draw = np.random.default_rng(group)
    return draw.integers(0, 256, (rows, packed_bytes(info.width, info.input_bits)), dtype=np.uint8)


def differences_from_cpu(one: Shared) -> int:
    """Of the answers of some groups and the shares of some blocks, how many are not the processor's."""
    model, cpu = one.engine.model, kernels_for("cpu")
    groups, starts = model.manifest.groups, model.manifest.starts
    sampled = sorted({*range(min(4, len(groups))), len(groups) // 2, len(groups) - 1})
    wrong = 0
    for group in sampled:
        info = groups[group]
        slots = min(info.rows, _SAMPLED_SLOTS)
        rows = packed(model, group, _ROWS)
        h = one.engine.kernels.to_numpy(one.shares[info.segment])
        weights = cpu.load_weights([model.weights[group][:slots]])[0]
        share = [Rows(cpu.asarray(h), 0, _ROWS)]
        right = cpu.answer(cpu.asarray(rows), weights, share, starts[group], (info.input_bits, info.result_bits))
        wrong += not np.array_equal(cpu.to_numpy(right), one.answer(group, rows, slots))
        if starts[group] % model.params.w == 0:
            few = min(info.rows, 4 * model.params.w)
            part = [HintRows(group, cpu.load_weights([model.weights[group][:few]])[0])]
            hint = ServerHint.build(model.params, model.seed, {info.segment: part}, cpu)
            own = Engine(model, hint, [], cpu)
            known = own.shares([own.decode([one.upload])], (info.segment,))[info.segment][0]
            first = starts[group]
            full = few // model.params.w * model.params.w
            wrong += not np.array_equal(cpu.to_numpy(known)[:, :full], h[:, first : first + full])
    return wrong


def compare(name: str, device: str, gpus: int, record: Record) -> None:
    """The part that is measured in this process."""
    model = random_model(name)
    one = Shared(Engine.build(model, kernels_for(device)))
    several = Shared(SpreadEngine.over(model, [gpu.kernels for gpu in find_gpus(device, gpus)]))
    wrong = 0
    for group in range(len(model.manifest.groups)):
        rows = packed(model, group, _ROWS)
        wrong += not np.array_equal(one.answer(group, rows), several.answer(group, rows))
    record.add(Measurement(name="groups whose answers differ, cut from one GPU", value=wrong, unit="", target="0"))
    value = differences_from_cpu(one)
    record.add(Measurement(name="samples that differ, one GPU from the processor", value=value, unit="", target="0"))
    for rows_a_product in (1, 12):
        alone, cut = one.token_s(rows_a_product), several.token_s(rows_a_product)
        told = f"a token's products, {rows_a_product} row{'s' * (rows_a_product > 1)}"
        record.add(Measurement.of(f"{told}, one GPU", [1e3 * value for value in alone], "ms"))
        record.add(Measurement.of(f"{told}, cut over {gpus}", [1e3 * value for value in cut], "ms"))
    del one, several
    gc.collect()


def load(name: str, request: LoadRequest, record: Record, clients: Sequence[int], out: Path) -> None:
    """A server under its loads."""
    begun = time.monotonic()
    with serving(replace(request, clients=(max(clients),)), _quiet) as (server, metrics):
        own = replace(request, server=server, metrics=metrics)
        measure(replace(own, clients=(3,), seconds=1.0), _quiet)
        for count in clients:
            try:
                series = measure(replace(own, clients=(count,)), _quiet)
            except (VeilError, OSError, ValueError) as error:
                record.notes.append(f"{name}, {count} clients: {error}")
                continue
            for row in rows_of(name, Situation(clients=count), series.points[0]):
                record.add(row)
            record.write(out)
            print(f"{time.monotonic() - begun:6.1f} s  {name}, {count} clients", flush=True)


def _quiet(stage: str, done: int, total: int) -> None: ...


def main() -> None:
    """Measure, write the record and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--memory-gib", type=float, default=48.0)
    parser.add_argument("--only", default="compared,one GPU,copies,cut", help="parts, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("bench/results/load-gpus.json"))
    given = parser.parse_args()
    told = {"device": given.device, "model": given.model, "gpus": given.gpus, "seconds": given.seconds}
    record = Record(benchmark="load_gpus", parameters=told)
    wanted = given.only.split(",")
    if "compared" in wanted:
        try:
            compare(given.model, given.device, given.gpus, record)
        finally:
            record.write(given.out)
            print("compared", flush=True)
    for name in (name for name in _CLIENTS if name in wanted):
        options = () if name == "one GPU" else (str(given.gpus), name)
        request = LoadRequest(
            server=None,
            model=given.model,
            device=given.device,
            seconds=given.seconds,
            memory_gib=given.memory_gib,
            serve_options=options,
        )
        try:
            load(f"{given.model}, {name}", request, record, _CLIENTS[name], given.out)
        except VeilError as error:  # the others are measured all the same
            record.notes.append(f"{given.model}, {name}: {error}")
    record.write(given.out)
    record.show()


if __name__ == "__main__":
    main()
