"""Check and time the CUDA kernels on this machine's GPU: a batch's offline work, and rows, for models' shapes.

    python -m bench gpu_kernels --out bench/results/gpu-kernels.json [check offline rows prompts hint tune]

Weights and polynomials are random: the work does not depend on their values. Results are compared with NumPy, exactly.
Times are medians between events; those of single rows are of CUDA graph replays. "Share" is the least bytes that must move
(or the int8 operations) over what the GPU's data sheet says: 4.8 TB/s of an H200, 3.35 of an H100, 1,979 TOPS of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from veil.crypto import public
from veil.kernels.cuda import ntt_domain, product
from veil.kernels.cuda.backend import CudaKernels
from veil.kernels.cuda.constants import constants
from veil.kernels.cuda.device import target
from veil.kernels.cuda.graphs import capture
from veil.kernels.cuda.rows import located
from veil.kernels.interface import Rows, Scaling
from veil.kernels.reference_kernels import ReferenceKernels
from veil.kernels.ring import ring_of
from veil.params import Params, packed_bytes
from veil.random import SecretRng
from veil.seed import PublicSeed

OPERATIONS_PER_S = 1.979e15
MODELS = {
    "gpt2": (12, [(2304, 768), (768, 768), (3072, 768), (768, 3072)], (50257, 768)),
    "llama-1b": (16, [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)], (128256, 2048)),
    "llama-8b": (32, [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)], (128256, 4096)),
}
BITS = {"llama-8b": (26, 16)}
K, R = CudaKernels(), ReferenceKernels()
PARAMS = Params.default()
RING = ring_of(PARAMS)
RECORD: dict[str, Any] = {}


def bytes_per_s() -> float:
    """What the data sheet of the GPU says of its memory."""
    return 4.8e12 if "H200" in torch.cuda.get_device_name() else 3.35e12


def groups(model: str) -> list[tuple[int, int]]:
    layers, shapes, head = MODELS[model]
    return [*shapes * layers, head]


def note(section: str, name: str, **values: Any) -> None:
    RECORD.setdefault(section, {})[name] = values
    told = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
    print(f"{section:8s} {name:40s} {told}", flush=True)


def same(name: str, actual: Any, expected: Any) -> None:
    array = K.to_numpy(actual)
    equal = array.dtype == expected.dtype and array.shape == expected.shape and np.array_equal(array, expected)
    note("check", name, equal=bool(equal), words=int(array.size))


def timed(step: Callable[[], Any], repeats: int = 10) -> float:
    """Milliseconds of a step, as launched from Python."""
    step()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def replayed(step: Callable[[], Any], repeats: int = 10) -> float:
    """Milliseconds of a step replayed as a CUDA graph."""
    return timed(capture(step), repeats)


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device="cuda").view(torch.uint32)


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")


def octets(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")


def random_hint(blocks: int) -> Any:
    hint = K.new_hint(blocks, RING)
    for first in range(0, blocks, 512):
        count = min(512, blocks - first)
        rows = torch.randint(-(1 << 19), 1 << 19, (count * RING.w, RING.n), dtype=torch.int32, device="cuda")
        K.fill_hint(hint, first, rows, RING)
    return hint


def random_ntt(count: int) -> np.ndarray:
    draw = np.random.default_rng(1)
    parts = [draw.integers(0, p, (count, RING.terms, RING.N), dtype=np.uint32) for p in RING.primes]
    return np.stack(parts, axis=2)


# Equality ------------------------------------------------------------------------------------------------------------


def check() -> None:
    draw, seed, rng = np.random.default_rng(0), PublicSeed(bytes(32)), SecretRng.insecure_for_tests(1)
    width, slots = 203, 1100
    weights = draw.integers(-128, 128, (slots, width), dtype=np.int8)
    a = public.inner_polynomials(seed, PARAMS, 0, width)
    rows = R.inner_hint(weights, a, RING)
    same("inner hint", K.inner_hint(K.load_weights([weights])[0], a, RING), rows)
    mine, theirs = K.new_hint(PARAMS.blocks(slots), RING), R.new_hint(PARAMS.blocks(slots), RING)
    K.fill_hint(mine, 0, K.asarray(rows), RING)
    R.fill_hint(theirs, 0, rows, RING)
    outer = public.outer_polynomials(seed, PARAMS)
    table = R.prepare(theirs, outer[None], RING.public_bits, RING)
    same("public table", K.prepare(mine, K.asarray(outer[None]), RING.public_bits, RING), table)
    reloaded = K.load_hint(mine.arrays(), RING)
    batches = random_ntt(5)
    batches[0], batches[1, :, 0], batches[1, :, 1] = 0, RING.primes[0] - 1, RING.primes[1] - 1
    for count in (1, 2, 3, 5):
        own = batches[-count:]
        same(f"prepare {count}", K.prepare(reloaded, K.asarray(own), 32, RING), R.prepare(theirs, own, 32, RING))
    secrets, z = _secrets(rng, 3)
    host = R.errors(rng, 3.2)
    errors = host.draw(3, RING.terms, RING.N)
    data = R.encrypt_batches(outer, z, secrets, errors, RING)
    gpu = [K.asarray(values) for values in (outer, z, secrets, errors)]
    same("encrypt batches", K.encrypt_batches(gpu[0], gpu[1], gpu[2], gpu[3], RING), data)
    same("decode batches", K.decode_batches(K.asarray(data), RING), R.decode_batches(data, RING))
    drawn = [host.draw(PARAMS.T, len(a) * RING.r) for _ in range(3)]
    pads = R.pads(R.load_inner(a, RING), secrets, drawn, RING)
    for made, own in zip(K.pads(K.load_inner(a, RING), gpu[2], map(K.asarray, drawn), RING), pads, strict=True):
        same("pads", made, own)
    shares = R.shares(R.load_public(table[0], RING), z, slots, RING)
    for made, own in zip(K.shares(K.load_public(table[0], RING), gpu[1], slots, RING), shares, strict=True):
        same("shares", made, own)
    drawn = K.errors(rng, 3.2).draw(64, 100_000).float()
    note("check", "errors", mean=float(drawn.mean()), deviation=float(drawn.std()), largest=float(drawn.abs().max()))
    _check_rows(draw, rng)


def _secrets(rng: SecretRng, count: int) -> tuple[Any, Any]:
    """Secrets s [count, k, m] and z [count, N] int8."""
    s = rng.ternary(count * PARAMS.n).reshape(count, PARAMS.k, PARAMS.m)
    return s, rng.ternary(count * PARAMS.N).reshape(count, PARAMS.N)


def _check_rows(draw: np.random.Generator, rng: SecretRng) -> None:
    for (count, width), bits in itertools.product(
        [(1000, 777), (50, 4097), (2304, 768)], [(24, 16), (23, 14), (12, 8), (26, 15), (32, 32)]
    ):
        weights = draw.integers(-128, 128, (count, width), dtype=np.int8)
        batches = [draw.integers(0, 1 << 32, (64, count + width + 5), dtype=np.uint64).astype(np.uint32) for _ in range(2)]
        scale, bias = (draw.standard_normal(count).astype(np.float32) for _ in range(2))
        divisors = np.exp2(draw.integers(-3, 4, width)).astype(np.float32)
        for places in ([(0, 63, 1)], [(0, 0, 64), (1, 5, 11), (0, 2, 0)]):
            total = sum(place[2] for place in places)
            host = [Rows(batches[b], first, some) for b, first, some in places]
            gpu = [Rows(K.asarray(batches[b]), first, some) for b, first, some in places]
            x = (draw.integers(-4096, 4096, (total, width)) / 256).astype(np.float32)
            fixed = float(np.sqrt((x.astype(float) ** 2).sum(axis=1)).mean()) if width == 777 else 0.0
            here = Scaling(divisors, scale, bias, 1.3e7, fixed)
            there = Scaling(K.asarray(divisors), K.asarray(scale), K.asarray(bias), 1.3e7, fixed)
            data, scales = R.encrypt(x, here, host, 3, bits[0])
            mine, tau = K.encrypt(K.asarray(x), there, gpu, 3, bits[0])
            name = f"{count}x{width} {bits} {total} rows"
            same(f"encrypt {name}", mine, data)
            same(f"scales {name}", tau, scales)
            reply = R.answer(data, weights, host, 2, bits)
            same(f"answer {name}", K.answer(mine, K.asarray(weights), gpu, 2, bits), reply)
            y = R.decrypt(reply, here, host, 5, bits[1], scales)
            same(f"decrypt {name}", K.decrypt(K.asarray(reply), there, gpu, 5, bits[1], K.asarray(scales)), y)


# A batch -------------------------------------------------------------------------------------------------------------


def _prepare(model: str, blocks: int) -> None:
    T = PARAMS.T
    hint = random_hint(blocks)
    for count in (1, 2, 4, 8):
        batches = K.asarray(random_ntt(count))
        ms = timed(partial(K.prepare, hint, batches, 32, RING), 5)
        least = (hint.nbytes + count * 4 * T * blocks * RING.w) / bytes_per_s()
        note("offline", f"{model} prepare {count}", ms=ms, us_a_row=1e3 * ms / count / T, share=1e3 * least / ms)
    if model == "gpt2":
        k = constants(RING, target())
        sums = torch.empty((1, blocks, 2, RING.N), dtype=torch.uint32, device="cuda")
        batches = K.asarray(random_ntt(1))
        note("offline", f"{model} sums only", ms=timed(lambda: ntt_domain.sums(hint.words, batches, k, sums)))


def offline(model: str) -> None:
    shapes = groups(model)
    slots, elements = sum(rows for rows, _ in shapes), sum(PARAMS.elements(width) for _, width in shapes)
    blocks, T = PARAMS.blocks(slots), PARAMS.T
    _prepare(model, blocks)
    torch.cuda.empty_cache()
    rng = SecretRng()
    inner = K.load_inner(np.zeros((elements, RING.k, RING.m), dtype=np.uint32), RING)
    errors, outer = K.errors(rng, 3.2), K.asarray(random_ntt(1)[0])
    secrets, z = map(K.asarray, _secrets(rng, 1))
    drawn = [errors.draw(T, elements * RING.r)]
    note("offline", f"{model} errors", ms=timed(lambda: errors.draw(T, elements * RING.r)))
    note("offline", f"{model} pads", ms=timed(lambda: K.pads(inner, secrets, drawn, RING)))
    table = K.load_public(np.zeros((T, blocks * RING.w), dtype=np.uint32), RING)
    note("offline", f"{model} shares", ms=timed(lambda: K.shares(table, z, blocks * RING.w, RING)))
    _batches(model, inner, table, outer, blocks)
    own = errors.draw(1, RING.terms, RING.N)
    data = K.encrypt_batches(outer, z, secrets, own, RING)
    note("offline", f"{model} encrypt batch", ms=timed(lambda: K.encrypt_batches(outer, z, secrets, own, RING)))
    note("offline", f"{model} decode batch", ms=timed(lambda: K.decode_batches(data, RING)))


def _batches(model: str, inner: Any, table: Any, outer: Any, blocks: int, count: int = 4) -> None:
    """Everything that batches need, by the clock: what a client makes, and what the server makes of it."""
    hint, rng, T = random_hint(blocks), SecretRng(), PARAMS.T
    inner_errors, outer_errors = K.errors(rng, 3.2), K.errors(rng, 3.2)

    def make() -> Any:
        secrets, z = map(K.asarray, _secrets(rng, count))
        uploads = K.encrypt_batches(outer, z, secrets, outer_errors.draw(count, RING.terms, RING.N), RING)
        held = K.pads(inner, secrets, (inner_errors.draw(T, len(inner) * RING.r) for _ in range(count)), RING)
        held += K.shares(table, z, blocks * RING.w, RING)
        return [*held, K.prepare(hint, K.decode_batches(uploads, RING), 32, RING)]

    make()
    torch.cuda.synchronize()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        held = make()
        launched = time.perf_counter()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start, launched - start))
        del held
    whole, launch = (statistics.median(column) for column in zip(*times, strict=True))
    note(
        "offline",
        f"{model} {count} batches, all",
        ms=1e3 * whole,
        launched_ms=1e3 * launch,
        us_a_row=1e6 * whole / count / T,
    )


# Rows ----------------------------------------------------------------------------------------------------------------


class Halves:
    """Random weights and material for a model's groups, and steps over all of them."""

    def __init__(self, model: str, rows: int) -> None:
        self.shapes, self.rows = groups(model), rows
        self.bits = BITS.get(model, (24, 16))
        self.weights = [int8(*shape) for shape in self.shapes]
        most = max(max(shape) for shape in self.shapes)
        material = [words(PARAMS.T, most) for _ in range(-(-rows // PARAMS.T))]
        self.parts = [Rows(own, 0, min(rows, PARAMS.T)) for own in material]
        self.scalings, self.x, self.data, self.reply = {}, {}, {}, {}
        for count, width in set(self.shapes):
            ones = torch.ones(count, device="cuda")
            self.scalings[count, width] = Scaling(torch.ones(width, device="cuda"), ones, ones, 1e7, 0.0)
            self.x[count, width] = torch.randn(rows, width, device="cuda")
            self.data[count, width] = octets(rows, packed_bytes(width, self.bits[0]))
            self.reply[count, width] = octets(rows, packed_bytes(count, self.bits[1]))
        self.scales = torch.ones(rows, dtype=torch.float64, device="cuda")

    def encrypt(self) -> None:
        for shape in self.shapes:
            K.encrypt(self.x[shape], self.scalings[shape], self.parts, 0, self.bits[0])

    def answer(self) -> None:
        for shape, weights in zip(self.shapes, self.weights, strict=True):
            K.answer(self.data[shape], weights, self.parts, 0, self.bits)

    def decrypt(self) -> None:
        for shape in self.shapes:
            K.decrypt(self.reply[shape], self.scalings[shape], self.parts, 0, self.bits[1], self.scales)


def rows(model: str) -> None:
    halves = Halves(model, 1)
    weights = sum(own.numel() for own in halves.weights)
    for bits in ((24, 16), (23, 15), (26, 16)):
        halves.bits = bits
        for shape in set(halves.shapes):
            halves.data[shape] = octets(1, packed_bytes(shape[1], bits[0]))
            halves.reply[shape] = octets(1, packed_bytes(shape[0], bits[1]))
        ms = replayed(halves.answer)
        note("rows", f"{model} answers of a token {bits}", ms=ms, share=1e3 * weights / bytes_per_s() / ms)
        if model != "llama-8b":
            note("rows", f"{model} encrypt {bits}", ms=replayed(halves.encrypt))
            note("rows", f"{model} decrypt {bits}", ms=replayed(halves.decrypt))


def prompts(model: str, count: int = 512) -> None:
    halves = Halves(model, count)
    steps = {"encrypt": halves.encrypt, "answer": halves.answer, "decrypt": halves.decrypt}
    weights = sum(own.numel() for own in halves.weights)
    for name, step in steps.items():
        ms, eager = replayed(step, 5), timed(step, 5)
        more = {}
        if name == "answer":
            more = {"share": 2e3 * 3 * weights * count / OPERATIONS_PER_S / ms}
        note("prompts", f"{model} {name} {count} rows", ms=ms, eager_ms=eager, us_a_row=1e3 * eager / count, **more)


def layers() -> None:
    for shape, some in itertools.product([*MODELS["llama-1b"][1], (2304, 768), (28672, 4096)], (1, 8, 16, 64, 512)):
        _layer(*shape, some)


def _layer(count: int, width: int, some: int) -> None:
    data, parts = octets(some, packed_bytes(width, 24)), [Rows(words(64, count), 0, min(64, some))] * -(-some // 64)
    copies = [int8(count, width) for _ in range(min(8, 1 + (100 << 20) // (count * width)))]

    def step() -> None:
        for own in copies:
            K.answer(data, own, parts, 0, (24, 16))

    ms = replayed(step) / len(copies)
    least = count * width / bytes_per_s() if some == 1 else 6 * count * width * some / OPERATIONS_PER_S
    note("layers", f"{count}x{width} {some} rows", us=1e3 * ms, share=1e3 * least / ms)


def hint() -> None:
    for model in MODELS:
        layers, shapes, head = MODELS[model]
        total = 0.0
        for shape, times in (*((shape, layers) for shape in shapes), (head, 1)):
            weights = int8(*shape)
            a = np.zeros((PARAMS.elements(shape[1]), RING.k, RING.m), dtype=np.uint32)
            ms = timed(partial(K.inner_hint, weights, a, RING), 3)
            total += times * ms
            share = 8e3 * shape[0] * shape[1] * RING.n / OPERATIONS_PER_S / ms
            note("hint", f"{model} inner {shape}", ms=ms, share=share)
        slots = sum(rows for rows, _ in groups(model))
        own = torch.randint(-(1 << 19), 1 << 19, (4096 * RING.w, RING.n), dtype=torch.int32, device="cuda")
        room = K.new_hint(4096, RING)
        ms = timed(partial(K.fill_hint, room, 0, own, RING), 3) * PARAMS.blocks(slots) / 4096
        note("hint", f"{model} all", inner_s=total / 1e3, fill_s=ms / 1e3)


# Tiles ---------------------------------------------------------------------------------------------------------------


def tune() -> None:
    for (count, width), bits in itertools.product(
        [(28672, 4096), (4096, 14336), (6144, 4096), (16384, 2048), (2048, 8192), (3072, 2048), (3072, 768), (768, 3072)],
        [(26, 16), (23, 15)],
    ):
        shares, data = located([Rows(words(1, count), 0, 1)], 0), octets(1, packed_bytes(width, bits[0]))
        copies = [int8(count, width) for _ in range(min(30, 1 + (200 << 20) // (count * width)))]
        out = octets(1, packed_bytes(count, bits[1]))
        for shape in [(8, 256, 1), (8, 512, 2), (8, 512, 4), (8, 1024, 4), (8, 1024, 8), (8, 2048, 8), (8, 256, 2),
                      (16, 256, 1), (16, 256, 2), (16, 512, 4), (16, 1024, 8), (16, 512, 2), (32, 512, 4)]:  # fmt: skip
            if bits[0] == 23 and shape[0] == 32:
                continue

            def step(
                shape: Any = shape, out: Any = out, copies: Any = copies, bits: Any = bits, args: Any = (data, shares)
            ) -> None:
                for own in copies:
                    product.answer_row(args[0], own, args[1], bits, out, product.RowTile(*shape))

            ms = replayed(step, 5) / len(copies)
            note("tune", f"row {count}x{width} {bits} {shape}", us=1e3 * ms, share=1e3 * count * width / bytes_per_s() / ms)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("sections", nargs="*", default=["check", "offline", "rows", "layers", "prompts", "hint"])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    models = options.models
    RECORD["gpu"], RECORD["torch"] = torch.cuda.get_device_name(), torch.__version__
    steps: dict[str, list[Callable[[], None]]] = {
        "check": [check],
        "tune": [tune],
        "offline": [partial(offline, model) for model in models],
        "rows": [partial(rows, model) for model in models],
        "layers": [layers],
        "prompts": [partial(prompts, model) for model in models if model != "llama-8b"],
        "hint": [hint],
    }
    for section in options.sections:
        start = time.perf_counter()
        for step in steps[section]:
            step()
            torch.cuda.empty_cache()
        print(f"{section}: {time.perf_counter() - start:.0f} s", flush=True)
        options.out.write_text(json.dumps(RECORD, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
