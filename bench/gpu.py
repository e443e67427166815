"""One GPU: offline rows, the server's work for a token, and whole models with both halves there, in one record.

    python -m bench gpu [--models gpt2,llama-1b,llama-8b] [--out bench/results/gpu.json]

The first two are measured through `veil.kernels.interface.Kernels` for models' shapes, with weights made on the GPU (the
work does not depend on values): batches as a client makes them and an engine prepares them, and every group's answer for one
row, recorded as one CUDA graph as `generate` has it. Then GPT-2 and Llama-1B run whole, encrypted in mode ``execute`` and
plaintext float32, by `veil bench`, whose records are written beside this one as ``gpu-MODEL.json``. It should take some
minutes on an H100; the record is written after each part, so that a run that is cut off leaves what it had.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.record import Measurement, Record
from veil import noise
from veil.bench import files, machine, run
from veil.bundle.manifest import Group, Layer, Manifest
from veil.bundle.server_half import ServerModel
from veil.crypto.batch import BatchMaker
from veil.crypto.hint import HintRows, ServerHint
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Kernels, Rows
from veil.kernels.reference_kernels import ReferenceKernels
from veil.params import Params, packed_bytes
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.server.engine import Engine
from veil.server.local import LocalServer
from veil.wire.messages import BatchUpload

BATCHES = 4
REPEATS = 30
CHECKED = 64
"""Outputs of a group that are compared with the reference."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model's remote layers: (inputs, outputs) of each group of the body and of the head; and the aim for a token."""

    body: tuple[tuple[int, int], ...]
    head: tuple[int, int]
    token_ms: float


MODELS = {
    "gpt2": Shapes(
        body=((768, 2304), (768, 768), (768, 3072), (3072, 768)) * 12, head=(768, 50257), token_ms=0.35
    ),
    "llama-1b": Shapes(
        body=((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048)) * 16, head=(2048, 128256), token_ms=0.95
    ),
    "llama-8b": Shapes(
        body=((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)) * 32, head=(4096, 128256), token_ms=4.0
    ),
}  # fmt: skip
WHOLE = ("gpt2", "llama-1b")


class Clock:
    """Times calls on a processor, or on a GPU as a CUDA graph's replays."""

    def __init__(self, kernels: Kernels, repeats: int = REPEATS) -> None:
        self._gpu = kernels.name == "cuda"
        self._repeats = repeats

    def calls(self, step: Callable[[], object]) -> list[float]:
        """Milliseconds of each call, until a GPU has done its work; two calls first."""
        samples = []
        for repeat in range(2 + self._repeats):
            start = time.perf_counter()
            step()
            self.finish()
            samples += [1e3 * (time.perf_counter() - start)] if repeat > 1 else []
        return samples

    def replays(self, step: Callable[[], object]) -> list[float]:
        """The same of the step as one graph, between events."""
        if not self._gpu:
            return self.calls(step)
        from veil.kernels.cuda.graphs import capture

        replay, samples = capture(step), []
        for _ in range(2 + self._repeats):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            replay()
            after.record()
            after.synchronize()
            samples.append(before.elapsed_time(after))
        return samples[2:]

    def finish(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()


class Model:
    """Both halves of a model's shapes, as an engine and a session have them."""

    def __init__(self, shapes: Shapes, kernels: Kernels, params: Params) -> None:
        self.kernels, self.params, self.seed = kernels, params, PublicSeed.fresh()
        sizes = [*shapes.body, shapes.head]
        self.weights = kernels.load_weights([random_weights(kernels, rows, width) for width, rows in sizes])
        self.manifest = manifest_of(params, sizes)
        segments: dict[str, list[HintRows]] = {name: [] for name in self.manifest.segments}
        for index, group in enumerate(self.manifest.groups):
            segments[group.segment].append(HintRows(index, self.weights[index]))
        hint = ServerHint.build(params, self.seed, segments, kernels)
        server = ServerModel(params, self.seed, self.manifest, tuple(self.weights))
        self.engine = Engine(server, hint, self.weights, kernels)
        tables = hint.public_tables(self.seed, params)
        manifest = self.manifest
        self.maker = BatchMaker(params, self.seed, manifest.widths, manifest.segments, tables, kernels, SecretRng())
        self.server = LocalServer(self.engine)
        self.session = self.server.open()
        self.made = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of int8 weights."""
        return sum(group.rows * group.width for group in self.manifest.groups)

    def uploads(self) -> list[BatchUpload]:
        """Batches of all segments as a client makes them."""
        numbers = range(self.made, self.made + BATCHES)
        self.made += BATCHES
        data, _ = self.maker.make(numbers, tuple(self.manifest.segments))
        return [BatchUpload(number, own) for number, own in zip(numbers, data, strict=True)]

    def prepare(self, uploads: Sequence[BatchUpload]) -> None:
        """Prepare batches, and forget them."""
        numbers = [self.made + place for place in range(len(uploads))]
        self.made += len(uploads)
        renamed = [BatchUpload(number, upload.data) for number, upload in zip(numbers, uploads, strict=True)]
        self.server.prepare(self.session, renamed, tuple(self.manifest.segments))
        self.server.release(self.session, numbers)

    def token(self) -> list[Any]:
        """One packed row of each group [1, bytes]."""
        draw = np.random.default_rng(1)
        sizes = [packed_bytes(group.width, group.input_bits) for group in self.manifest.groups]
        return [self.kernels.asarray(draw.integers(0, 256, (1, size), dtype=np.uint8)) for size in sizes]

    def shares(self) -> dict[str, list[Rows]]:
        """One row of shares by segment; zeros are as good as any."""
        params = self.params
        return {
            name: [Rows(self.kernels.zeros(1, params.blocks(slots) * params.w), 0, 1)]
            for name, slots in self.manifest.segments.items()
        }

    def answer(self, group: int, data: Any, shares: dict[str, list[Rows]]) -> Any:
        """A group's reply."""
        info, column = self.manifest.groups[group], self.manifest.starts[group]
        bits = (info.input_bits, info.result_bits)
        return self.kernels.answer(data, self.weights[group], shares[info.segment], column, bits)


def random_weights(kernels: Kernels, rows: int, width: int) -> Any:
    """Uniform int8 weights [rows, width], made where they are used."""
    if kernels.name == "cuda":
        return torch.randint(-127, 128, (rows, width), dtype=torch.int8, device="cuda")
    return np.random.default_rng(rows).integers(-127, 128, (rows, width), dtype=np.int8)


def manifest_of(params: Params, sizes: Sequence[tuple[int, int]]) -> Manifest:
    """Groups of one layer each, the last one the head, with the bits that uniform weights get."""
    groups = []
    for number, (width, rows) in enumerate(sizes):
        layer = Layer(f"layer{number}", "linear", width, rows, 8, False)
        bits = noise.wire_bits(params, width, rows, 127 * (width / 3) ** 0.5)
        groups.append(Group((layer,), "head" if number == len(sizes) - 1 else "body", None, bits.input, bits.result))
    return Manifest(tuple(groups))


def check(model: Model, data: Sequence[Any], shares: dict[str, list[Rows]]) -> None:
    """The first outputs of some groups, against the reference; `SystemExit` if one differs."""
    kernels, reference = model.kernels, ReferenceKernels()
    for group in (0, 1, len(data) - 2, len(data) - 1):
        info, column = model.manifest.groups[group], model.manifest.starts[group]
        few, bits = min(CHECKED, info.rows), (info.input_bits, info.result_bits)
        nothing = [Rows(np.zeros((1, column + few), dtype=np.uint32), 0, 1)]
        weights = kernels.to_numpy(model.weights[group][:few])
        wanted = reference.answer(kernels.to_numpy(data[group]), weights, nothing, column, bits)
        whole = few * info.result_bits // 8
        made = kernels.to_numpy(model.answer(group, data[group], shares))
        if not np.array_equal(made[:, :whole], wanted[:, :whole]):
            raise SystemExit(f"WRONG: the answer of {info.name} is not the reference's")


def measure_shapes(name: str, shapes: Shapes, kernels: Kernels, params: Params, record: Record, clock: Clock) -> None:
    """Offline rows on both sides, and the server's work for a token."""
    model = Model(shapes, kernels, params)
    rows = BATCHES * params.T
    uploads = model.uploads()
    for side, step in (("server", lambda: model.prepare(uploads)), ("client", model.uploads)):
        samples = [each / rows for each in clock.calls(step)]
        record.add(Measurement.of(f"{name}, an offline row, {side}", samples, "ms", target="both sides ≤ 0.02 ms for gpt2"))
    data, shares = model.token(), model.shares()
    check(model, data, shares)
    samples = clock.replays(lambda: [model.answer(group, own, shares) for group, own in enumerate(data)])
    target, size = f"≤ {shapes.token_ms:g} ms", model.weight_bytes
    token = Measurement.of(f"{name}, server's work for a token", samples, "ms", target=target, bytes=size)
    record.add(token)
    if kernels.name == "cuda":
        reading = 1e3 * size / machine.gpu_bandwidth()
        record.add(Measurement(name=f"{name}, reading the int8 weights alone", value=reading, unit="ms", bytes=size))


def measure_whole(name: str, record: Record, folder: Path) -> None:
    """`veil bench` with both halves on the GPU: its record, and the rows of a prompt in this one."""
    made = run.measure(run.RunRequest(model=name, device="cuda", plaintext=True), print_progress)
    files.write(made, folder / f"gpu-{name}.json")
    for prompt in made.prompts:
        text = f"{name}, a row of a {prompt.rows}-row prompt"
        target = "≤ 0.25 ms" if (name, prompt.rows) == ("llama-1b", 512) else ""
        record.add(Measurement(name=f"{text}, offline rows included", value=1e3 * prompt.row_s, unit="ms", target=target))
        record.add(Measurement(name=f"{text}, online", value=1e3 * prompt.online_s, unit="ms"))
        record.add(Measurement(name=f"{text}, plaintext float32", value=1e3 * (prompt.plaintext_s or 0.0), unit="ms"))


def print_progress(stage: str, done: int, total: int) -> None:
    """A line for each stage."""
    if done == 0:
        print(stage, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu.json"))
    parser.add_argument("--shapes-only", action="store_true", help="leave out the whole models")
    options = parser.parse_args()
    kernels, params = kernels_for("cuda"), Params.default()
    parameters = params.spec.to_dict() | {"batches_at_once": BATCHES}
    record = Record(benchmark="one GPU", parameters=parameters, machine=torch.cuda.get_device_name())
    for name in options.models.split(","):
        measure_shapes(name, MODELS[name], kernels, params, record, Clock(kernels))
        record.write(options.out)
        gc.collect()
        torch.cuda.empty_cache()
    for name in [name for name in WHOLE if name in options.models.split(",") and not options.shapes_only]:
        measure_whole(name, record, options.out.parent)
        record.write(options.out)
        gc.collect()
        torch.cuda.empty_cache()
    record.show()


if __name__ == "__main__":
    main()
