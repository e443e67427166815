"""Build, check and time the CUDA backend on this machine's card: kernels, then the server's work for models' shapes.

    python bench/gpu.py --out bench/results/gpu-h100.json --commit $(git rev-parse --short HEAD)

Weights and polynomials are random: the work does not depend on their values, and every result is compared with NumPy.
Times are of CUDA graph replays, between events, after a warm-up; bytes are the least that the step has to move. Whole
tokens (bench/gpu_token.py) are timed by the clock. concrete-ml-extensions (bench/gpu_rival.py) is measured if it is
installed. The record is written after each section, so that a run that is cut off leaves what it had.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from veil.kernels import cuda, reference
from veil.kernels.ring import Ring, ring_of
from veil.params import Params, packed_bytes

INPUT_BITS, RESULT_BITS, SHARE_BITS = 24, 18, 32


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    section: str
    name: str
    median_us: float
    low_us: float
    high_us: float
    repeats: int
    least_bytes: int = 0
    copy_share: float = 0.0
    per: str = "call"
    target_us: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that one run measured."""

    card: str
    memory_bytes: int
    torch: str
    triton: str
    commit: str
    params: dict[str, Any]
    copy_bytes_per_s: float
    rows: list[Row] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model's remote layers: groups (input width, output width) of the body and of the head, in order."""

    name: str
    body: tuple[tuple[int, int], ...]
    head: tuple[int, int]
    target_us: float


GPT2 = Shapes(
    name="GPT-2 124M",
    body=((768, 2304), (768, 768), (768, 3072), (3072, 768)) * 12,
    head=(768, 50257),
    target_us=1500,
)
LLAMA_1B = Shapes(
    name="Llama-3.2-1B",
    body=((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048)) * 16,
    head=(2048, 128256),
    target_us=4000,
)
LLAMA_8B = Shapes(
    name="Llama-3-8B",
    body=((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)) * 32,
    head=(4096, 128256),
    target_us=15000,
)


class Bench:
    """Collects rows and prints them as they come."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.rows: list[Row] = []
        self.checks: list[str] = []
        self.notes: dict[str, Any] = {}
        self.started = time.perf_counter()
        self.generator = torch.Generator(device="cuda").manual_seed(1)
        self.copy_bytes_per_s = 0.0

    def measure_copy(self) -> None:
        """Bytes read plus bytes written of a 2 GiB device-to-device copy, a second."""
        source = torch.empty(1 << 29, dtype=torch.int32, device="cuda").random_(generator=self.generator)
        target = torch.empty_like(source)
        times = time_calls(lambda: target.copy_(source), 20)
        self.copy_bytes_per_s = 2 * source.nbytes / (statistics.median(times) * 1e-6)
        self.row("card", "copy 2 GiB", times, 2 * source.nbytes)

    def row(
        self, section: str, name: str, times: list[float], least_bytes: int = 0, *, parts: int = 1, per: str = "call",
        target_us: float = 0.0,
    ) -> Row:  # fmt: skip
        times = sorted(x / parts for x in times)
        median = statistics.median(times)
        share = least_bytes / parts / (median * 1e-6) / self.copy_bytes_per_s if least_bytes else 0.0
        row = Row(
            section=section, name=name, median_us=round(median, 2), low_us=round(times[len(times) // 10], 2),
            high_us=round(times[-1 - len(times) // 10], 2), repeats=len(times), least_bytes=least_bytes // parts,
            copy_share=round(share, 3), per=per, target_us=target_us,
        )  # fmt: skip
        self.rows.append(row)
        print(line(row), flush=True)
        return row

    def check(self, name: str, actual: torch.Tensor, expected: Any) -> None:
        if not np.array_equal(cuda.to_numpy(actual), expected):
            raise SystemExit(f"WRONG: {name}")
        self.checks.append(name)
        print(f"  exact: {name}  ({time.perf_counter() - self.started:.0f} s)", flush=True)

    def words(self, *shape: int) -> torch.Tensor:
        values = torch.empty(shape, dtype=torch.int32, device="cuda")
        return values.random_(-(1 << 31), (1 << 31) - 1, generator=self.generator).view(torch.uint32)

    def residues(self, *shape: int, primes: int = 2) -> torch.Tensor:
        """Uniform residues [*shape, primes, N]."""
        values = torch.empty((*shape, primes, self.ring.N), dtype=torch.int32, device="cuda")
        for i in range(primes):
            values[..., i, :].random_(0, self.ring.moduli[i], generator=self.generator)
        return values.view(torch.uint32)

    def weights(self, rows: int, width: int) -> torch.Tensor:
        values = torch.empty((rows, width), dtype=torch.int8, device="cuda")
        return values.random_(-127, 128, generator=self.generator)

    def indices(self, values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device="cuda")


def line(row: Row) -> str:
    share = f"{row.copy_share:6.1%} of copy" if row.copy_share else ""
    target = f"(target {row.target_us:,.0f})" if row.target_us else ""
    spread = f"[{row.low_us:,.1f}, {row.high_us:,.1f}]"
    return f"{row.section:14} {row.name:44} {row.median_us:12,.1f} us a {row.per:5} {spread:24} {share} {target}"


def time_calls(step: Callable[[], Any], repeats: int = 30) -> list[float]:
    """Microseconds of each call, between events; three calls first."""
    for _ in range(3):
        step()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda.synchronize()
    for before, after in events:
        before.record()
        step()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) * 1e3 for before, after in events]


def time_graph(step: Callable[[], Any], repeats: int = 30) -> list[float]:
    """Microseconds of each replay of the step as a CUDA graph."""
    return time_calls(cuda.capture(step), repeats)


# The server's state for a model's shapes ---------------------------------------------------------------------------


class Segment:
    """Ĥ, digits and groups of the layers that are prepared together."""

    def __init__(self, bench: Bench, groups: tuple[tuple[int, int], ...], leaves_a: torch.Tensor, keys: Keys) -> None:
        ring = bench.ring
        self.slots = sum(rows for _, rows in groups)
        self.blocks = -(-self.slots // ring.N)
        self.hint = torch.empty((self.blocks * ring.fold, ring.leaves, 2, ring.N), dtype=torch.uint32, device="cuda")
        self.groups: list[tuple[torch.Tensor, int, int]] = []
        pending: list[torch.Tensor] = []
        self.first_block: Any = None
        made = held = first = 0
        for width, rows in groups:
            weights = bench.weights(rows, width)
            self.groups.append((weights, first, rows))
            a = bench.words(-(-width // ring.n), ring.n)
            h = cuda.inner_hint(weights, a, RESULT_BITS, ring)
            if first == 0:
                self.sample = (weights[:8].cpu().numpy(), cuda.to_numpy(a), cuda.to_numpy(h[:8]))
            pending.append(h)
            first, held = first + rows, held + rows
            while held >= ring.N or (first == self.slots and held):
                joined = torch.cat(pending) if len(pending) > 1 else pending[0]
                block = joined[: ring.N]
                if made == 0:
                    self.first_block = cuda.to_numpy(block)
                cuda.outer_hint(block, ring, out=self.hint[made * ring.fold : (made + 1) * ring.fold])
                pending, held, made = [joined[ring.N :]], max(0, held - ring.N), made + 1
        products = cuda.product(self.hint, leaves_a, ring)
        self.digits, _ = cuda.combine_a(products, keys.public_combination, 20, ring)

    @property
    def hint_bytes(self) -> int:
        return self.hint.nbytes

    @property
    def weight_bytes(self) -> int:
        return sum(weights.nbytes for weights, _, _ in self.groups)


class Keys:
    """Random key halves: the public ones, and the stores of some epochs."""

    def __init__(self, bench: Bench, epochs: int) -> None:
        ring = bench.ring
        levels, turns = ring.levels, ring.fold - 1
        self.raw_expansion = bench.residues(levels, 2, primes=3)
        self.raw_combination = bench.residues(turns, 2, primes=3)
        self.raw_store = bench.residues(epochs, levels + turns, 2, primes=3)
        self.public_expansion = cuda.load_keys(self.raw_expansion, ring)
        self.public_combination = cuda.load_keys(self.raw_combination, ring)
        store = cuda.load_keys(self.raw_store, ring)
        self.expansion, self.combination = store[:, :levels], store[:, levels:]


class Model:
    """Both segments of a model's shapes and the expansion's digits."""

    def __init__(self, bench: Bench, shapes: Shapes, sets: int, epochs: int) -> None:
        ring = bench.ring
        started = time.perf_counter()
        self.shapes = shapes
        self.keys = Keys(bench, epochs)
        self.a = bench.residues(sets)
        self.digits, leaves_a = cuda.expand_a(self.a, self.keys.public_expansion, ring)
        self.body = Segment(bench, shapes.body, leaves_a, self.keys)
        self.head = Segment(bench, (shapes.head,), leaves_a, self.keys)
        self.segments = (self.body, self.head)
        torch.cuda.synchronize()
        self.load_s = time.perf_counter() - started

    def prepare(self, bench: Bench, b: torch.Tensor, sets: torch.Tensor, epochs: torch.Tensor) -> list[torch.Tensor]:
        """Shares h of both segments for T masks."""
        ring = bench.ring
        leaves = cuda.expand_b(b, self.digits, self.keys.expansion, ring, sets, epochs)
        shares = []
        for segment in self.segments:
            products = cuda.product(segment.hint, leaves, ring)
            shares.append(cuda.combine_b(products, segment.digits, self.keys.combination, SHARE_BITS, ring, sets, epochs))
        return shares

    def inputs(self, bench: Bench, rows: int) -> list[list[torch.Tensor]]:
        """Random packed rows, one tensor a group."""
        return [
            [bench.words(rows, weights.shape[1] * 3 // 4).view(torch.uint8) for weights, _, _ in segment.groups]
            for segment in self.segments
        ]

    def online(self, inputs: list[list[torch.Tensor]], shares: list[torch.Tensor]) -> list[torch.Tensor]:
        """Every group's answer."""
        return [
            cuda.answer(data, weights, h[:, first : first + rows], INPUT_BITS, RESULT_BITS)
            for segment, datas, h in zip(self.segments, inputs, shares, strict=True)
            for (weights, first, rows), data in zip(segment.groups, datas, strict=True)
        ]


def check_model(bench: Bench, model: Model) -> None:
    """Two masks of different sets and epochs through preparation, and their answers, against NumPy."""
    ring, name = bench.ring, model.shapes.name
    sets, epochs = [len(model.a) - 1, 0], [0, model.keys.raw_store.shape[0] - 1]
    b = bench.residues(2)
    device_sets, device_epochs = bench.indices(sets), bench.indices(epochs)
    leaves = cuda.expand_b(b, model.digits, model.keys.expansion, ring, device_sets, device_epochs)
    one = cuda.to_numpy(leaves[:1])
    raw = cuda.to_numpy(model.keys.raw_store)
    digits, _ = reference.expand_a(cuda.to_numpy(model.a[sets[0]]), cuda.to_numpy(model.keys.raw_expansion), ring)
    bench.check(f"{name}: expansion, a side", model.digits[sets[0]], digits)
    expected = reference.expand_b(cuda.to_numpy(b[:1]), [digits], [raw[epochs[0], : ring.levels]], ring)
    bench.check(f"{name}: expansion, b side", cuda.hint_to_reference(leaves[:1]), expected)
    segment = model.body
    weights, a, h = segment.sample
    bench.check(f"{name}: inner hint", torch.from_numpy(h), reference.inner_hint(weights, a, RESULT_BITS, ring))
    hint = reference.outer_hint(segment.first_block, ring)
    bench.check(f"{name}: outer hint", cuda.hint_to_reference(segment.hint[: ring.fold]), hint)
    products = cuda.product(segment.hint, leaves, ring)
    layout = np.ascontiguousarray(one.transpose(2, 3, 0, 1))
    bench.check(f"{name}: product", products[:1, : ring.fold], reference.product(hint, layout, ring))
    last = model.head
    products = cuda.product(last.hint, leaves, ring)
    made = cuda.combine_b(products, last.digits, model.keys.combination, SHARE_BITS, ring, device_sets, device_epochs)
    for t in range(2):
        wanted = reference.combine_b(
            cuda.to_numpy(products[t : t + 1, -ring.fold :]),
            cuda.to_numpy(last.digits[sets[t], -1:])[None],
            raw[epochs[t] : epochs[t] + 1, ring.levels :],
            SHARE_BITS,
            ring,
        )
        bench.check(f"{name}: combination of mask {t}", made[t : t + 1, -ring.N :], wanted)
    for rows in (1, 2, 16):
        inputs = model.inputs(bench, rows)
        shares = [bench.words(rows, segment.blocks * ring.N) for segment in model.segments]
        answers = model.online(inputs, shares)
        for at in (0, 3, len(answers) - 1):
            segment, index = (model.body, at) if at < len(model.body.groups) else (model.head, 0)
            weights_at, first, count = segment.groups[index]
            few = min(count, 256)  # the last rows, a whole number of bytes
            few -= (count - few) % 8 and few % 8
            start = (count - few) // 8 * 8
            data = inputs[model.segments.index(segment)][index]
            share = shares[model.segments.index(segment)][:, first + start : first + count]
            wanted = reference.answer(
                cuda.to_numpy(data), cuda.to_numpy(weights_at[start:]), cuda.to_numpy(share), INPUT_BITS, RESULT_BITS
            )
            bench.check(f"{name}: answer {at}, {rows} rows", answers[at][:, start * RESULT_BITS // 8 :], wanted)


def bench_server(bench: Bench, shapes: Shapes, *, batch: bool) -> None:
    """One token's server work: prepare one mask, answer every group."""
    ring = bench.ring
    model = Model(bench, shapes, sets=16, epochs=4)
    sizes = {
        "hint_bytes": sum(segment.hint_bytes for segment in model.segments),
        "weight_bytes": sum(segment.weight_bytes for segment in model.segments),
        "digit_bytes": model.digits.nbytes + sum(segment.digits.nbytes for segment in model.segments),
        "load_s": round(model.load_s, 2),
        "allocated_bytes": torch.cuda.max_memory_allocated(),
    }
    bench.notes[shapes.name] = sizes
    print(shapes.name, sizes, flush=True)
    check_model(bench, model)
    name = shapes.name
    b, sets, epochs = bench.residues(1), bench.indices([1]), bench.indices([1])
    leaves = cuda.expand_b(b, model.digits, model.keys.expansion, ring, sets, epochs)
    digit_bytes = model.digits[0].nbytes + sum(segment.digits[0].nbytes for segment in model.segments)
    expansion = time_graph(lambda: cuda.expand_b(b, model.digits, model.keys.expansion, ring, sets, epochs))
    bench.row(name, "expand one mask", expansion, model.digits[0].nbytes + leaves.nbytes)
    products = [cuda.product(segment.hint, leaves, ring) for segment in model.segments]
    times = time_graph(lambda: [cuda.product(segment.hint, leaves, ring) for segment in model.segments])
    bench.row(name, "product, T = 1", times, sizes["hint_bytes"] + leaves.nbytes + sum(x.nbytes for x in products))
    times = time_graph(
        lambda: [
            cuda.combine_b(x, segment.digits, model.keys.combination, SHARE_BITS, ring, sets, epochs)
            for x, segment in zip(products, model.segments, strict=True)
        ]
    )
    bench.row(name, "combine one mask", times, sum(segment.digits[0].nbytes for segment in model.segments))
    times = time_graph(lambda: model.prepare(bench, b, sets, epochs))
    bench.row(name, "prepare one mask", times, sizes["hint_bytes"] + digit_bytes, per="mask")
    inputs, shares = model.inputs(bench, 1), model.prepare(bench, b, sets, epochs)
    times = time_graph(lambda: model.online(inputs, shares))
    bench.row(name, f"answer all {len(shapes.body) + 1} groups, one row", times, sizes["weight_bytes"], per="token")
    times = time_graph(lambda: (model.prepare(bench, b, sets, epochs), model.online(inputs, shares)))
    bench.row(
        name, "one token: prepare + answer", times, sizes["hint_bytes"] + digit_bytes + sizes["weight_bytes"],
        per="token", target_us=shapes.target_us,
    )  # fmt: skip
    for rows in (16, 64):
        inputs = model.inputs(bench, rows)
        shares = [bench.words(rows, segment.blocks * ring.N) for segment in model.segments]
        times = time_graph(lambda inputs=inputs, shares=shares: model.online(inputs, shares), 10)
        bench.row(name, f"answer all groups, {rows} rows", times, sizes["weight_bytes"], parts=rows, per="row")
    bench_client(bench, shapes)
    for masks in (4, 16, 64) if batch else (16,):
        bench_batch(bench, model, masks)


def bench_batch(bench: Bench, model: Model, masks: int) -> None:
    """Preparation of several masks at once, of 16 sets and of ``masks / 16`` epochs."""
    ring, name = bench.ring, model.shapes.name
    b = bench.residues(masks)
    sets, epochs = bench.indices(t % 16 for t in range(masks)), bench.indices(t // 16 for t in range(masks))
    times = time_calls(lambda: model.prepare(bench, b, sets, epochs), 10)
    target = 200 if masks == 64 else 0
    bench.row(name, f"prepare {masks} masks", times, parts=masks, per="mask", target_us=target)
    times = time_calls(lambda: cuda.expand_b(b, model.digits, model.keys.expansion, ring, sets, epochs), 10)
    bench.row(name, f"  of which expand {masks} masks", times, parts=masks, per="mask")
    leaves = cuda.expand_b(b, model.digits, model.keys.expansion, ring, sets, epochs)
    times = time_calls(lambda: [cuda.product(segment.hint, leaves, ring) for segment in model.segments], 10)
    bench.row(name, f"  of which product, T = {masks}", times, parts=masks, per="mask")
    products = [cuda.product(segment.hint, leaves, ring) for segment in model.segments]
    times = time_calls(
        lambda: [
            cuda.combine_b(x, segment.digits, model.keys.combination, SHARE_BITS, ring, sets, epochs)
            for x, segment in zip(products, model.segments, strict=True)
        ],
        10,
    )
    bench.row(name, f"  of which combine {masks} masks", times, parts=masks, per="mask")
    if masks <= 16:
        one = torch.cat([cuda.product(model.head.hint, leaves[t : t + 1], ring) for t in range(masks)])
        bench.check(f"{name}: products of {masks} masks equal {masks} products", products[1], cuda.to_numpy(one))


def bench_client(bench: Bench, shapes: Shapes) -> None:
    """The client's kernels for one token: encrypt and decrypt every group; one mask's products with the secrets."""
    ring, groups = bench.ring, (*shapes.body, shapes.head)
    rows = []
    for width, count in groups:
        x = torch.randn((1, width), device="cuda", generator=bench.generator)
        scale = torch.rand(count, device="cuda", generator=bench.generator)
        data = bench.words(1, 4 * -(-count * RESULT_BITS // 32)).view(torch.uint8)
        data = data[:, : packed_bytes(count, RESULT_BITS)].contiguous()
        rows.append((x, bench.words(1, width), data, bench.words(1, count), scale, scale))

    def client() -> None:
        for x, masks, data, mu, scale, bias in rows:
            _, tau = cuda.encrypt_scaled(x, 2.0e7, masks, INPUT_BITS)
            cuda.decrypt_scaled(data, mu, RESULT_BITS, tau, scale, bias)

    bench.row(shapes.name, f"client: encrypt, decrypt {len(groups)} groups", time_graph(client), per="token")
    chunks = sum(-(-width // ring.n) for width, _ in groups)
    blocks = sum(-(-sum(count for _, count in part) // ring.N) for part in (shapes.body, (shapes.head,)))
    inner = torch.cat([cuda.load_inner(bench.words(1, ring.n), ring)] * chunks)
    outer, key = bench.residues(blocks), bench.residues(1)[0]

    def mask() -> None:
        cuda.secret_products(inner, inner[0], ring.inner_tables, ring)
        cuda.secret_products(outer, key, ring.tables, ring)

    bench.row(shapes.name, "client: a mask's products with secrets", time_graph(mask), per="mask")


def bench_launches(bench: Bench) -> None:
    """What a call costs the host without a graph."""
    weights, h = bench.weights(768, 768), bench.words(1, 768)
    data = bench.words(1, 768 * 3 // 4).view(torch.uint8)
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(50):
            cuda.answer(data, weights, h, INPUT_BITS, RESULT_BITS)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e6 / 50)
    bench.row("host", "answer 768 x 768 called from Python", times)
    replay = cuda.capture(lambda: cuda.answer(data, weights, h, INPUT_BITS, RESULT_BITS))
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(50):
            replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e6 / 50)
    bench.row("host", "answer 768 x 768 replayed as a graph", times)


def bench_comparison(bench: Bench) -> None:
    """Integer, int8 and float64 forms of the product of many masks."""
    from gpu_compare import compare, compare_rows

    compare(bench, time_calls)
    compare_rows(bench, time_graph)


def bench_tokens(bench: Bench, name: str) -> None:
    """Whole tokens of `generate`."""
    from gpu_token import bench_token

    bench_token(bench, name)


def rival_command(*options: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve().parent / "gpu_rival.py"), *options]


def bench_rival(bench: Bench) -> None:
    """GPT-2's products by concrete-ml-extensions, and how many times veil's whole server work for a token that is."""
    if importlib.util.find_spec("concrete_ml_extensions") is None:
        print("concrete-ml-extensions is not installed: not measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rival.json"
        subprocess.run(rival_command("--out", str(out), "--limit", "2"), check=True, timeout=150)
        rival = json.loads(out.read_text())
    ours = next((row.median_us for row in bench.rows if row.name == "one token: prepare + answer"), 0.0)
    rival["times_veil_server_work"] = round(rival["token_product_ms"] * 1e3 / ours) if ours else 0
    bench.notes["concrete-ml-extensions"] = rival
    print("concrete-ml-extensions:", rival["token_product_ms"], "ms a token,", rival["times_veil_server_work"], "times veil")


def warm(bench: Bench, sections: list[str]) -> None:
    """Compile what most sections use, while the driver compiles the rival's kernels beside it: nothing is timed yet."""
    started = time.perf_counter()
    measured = "rival" in sections and importlib.util.find_spec("concrete_ml_extensions") is not None
    rival = subprocess.Popen(rival_command("--warm")) if measured else None
    model = Model(bench, GPT2, sets=16, epochs=4)
    for masks in (1, 4, 16, 64):
        b, index = bench.residues(masks), bench.indices(t % 16 for t in range(masks))
        model.prepare(bench, b, index, bench.indices(t // 16 for t in range(masks)))
    for rows in (1, 16, 64):
        shares = [bench.words(rows, segment.blocks * bench.ring.N) for segment in model.segments]
        model.online(model.inputs(bench, rows), shares)
    torch.cuda.synchronize()
    compiled = time.perf_counter() - started
    if rival is not None:
        rival.wait(timeout=240)
    bench.notes["compile_s"] = {"kernels": round(compiled, 1), "with the rival's": round(time.perf_counter() - started, 1)}
    print(bench.notes["compile_s"], flush=True)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "gpt2": lambda bench: bench_server(bench, GPT2, batch=True),
    "token-gpt2": lambda bench: bench_tokens(bench, "gpt2"),
    "rival": bench_rival,
    "llama-1b": lambda bench: bench_server(bench, LLAMA_1B, batch=False),
    "token-llama-1b": lambda bench: bench_tokens(bench, "llama-1b"),
    "llama-8b": lambda bench: bench_server(bench, LLAMA_8B, batch=False),
    "comparison": bench_comparison,
    "host": bench_launches,
}


def commit_here() -> str:
    try:
        root = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the JSON record goes")
    parser.add_argument("--commit", default="", help="the commit that is measured, if git does not know")
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    options = parser.parse_args()
    if not cuda.available():
        raise SystemExit("no CUDA device")
    import triton

    started = time.perf_counter()
    params = Params.default()
    bench = Bench(ring_of(params))

    def record() -> Record:
        return Record(
            card=torch.cuda.get_device_name(), memory_bytes=cuda.memory_bytes()[1], torch=torch.__version__,
            triton=triton.__version__, commit=options.commit or commit_here(), params=params.spec.to_dict(),
            copy_bytes_per_s=round(bench.copy_bytes_per_s), rows=bench.rows, checks=bench.checks, notes=bench.notes,
        )  # fmt: skip

    bench.measure_copy()
    warm(bench, options.sections)
    for section in options.sections:
        SECTIONS[section](bench)
        gc.collect()
        torch.cuda.empty_cache()
        bench.notes["run_s"] = round(time.perf_counter() - started)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(asdict(record()), indent=1) + "\n")
    done = record()
    print(f"\n{done.card}, copy {done.copy_bytes_per_s / 1e12:.2f} TB/s, {len(done.checks)} checks exact")
    print(f"{bench.notes['run_s']} s")
    for row in bench.rows:
        print(line(row))


if __name__ == "__main__":
    main()
