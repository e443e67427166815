"""Time, bytes and memory of encrypted generation on the CPU, beside plaintext in the same run.

    python bench/cpu.py smollm2 [--out bench/results/cpu-smollm2.json]
    python bench/cpu.py gpt2    [--out bench/results/cpu-gpt2.json]

``smollm2`` is the built-in model, ``gpt2`` has GPT-2's shapes and random weights (speed does not depend on values).
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, prange

from record import Measurement, Record
from veil import HybridFHEModel
from veil.client.stats import Stats
from veil.kernels import cpu, cpu_tile
from veil.kernels.ring import ring_of
from veil.model.modules import select_modules

TOKENS = 49


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "gpt2"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, prompt = MODELS[args.model]()
    record = Record(
        benchmark=f"cpu, {args.model}", parameters={"new_tokens": TOKENS - 1, "torch_threads": torch.get_num_threads()}
    )
    plain = [per_token(model, prompt) for _ in range(3)][1:]
    record.add(Measurement.of("plaintext float32 generate, a token", plain, "s"))
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    hybrid.compile_model(prompt)
    start = time.perf_counter()
    hybrid.set_fhe_mode("execute")
    record.add(Measurement(name="building the hint and a session", value=time.perf_counter() - start, unit="s"))
    generation(hybrid, prompt, float(np.median(plain)), record)
    prompt_rows(hybrid, record)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record.add(Measurement(name="resident memory, peak", value=peak / 1e9, unit="GB", target="≤ 5"))
    limits(hybrid, record)
    record.show()
    record.write(args.out or Path(f"bench/results/cpu-{args.model}.json"))


def smollm2() -> tuple[Any, torch.Tensor]:
    from veil.model.sources import load_model

    source = load_model("smollm2")
    return source.model, source.tokenizer("The history of the lighthouse begins", return_tensors="pt").input_ids


def gpt2() -> tuple[Any, torch.Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval(), torch.randint(0, 50257, (1, 8))


MODELS = {"smollm2": smollm2, "gpt2": gpt2}


class Clock:
    """A streamer that keeps the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def per_token(model: Any, prompt: torch.Tensor) -> float:
    """Seconds a token of greedy generation, without the prompt."""
    clock = Clock()
    model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
        do_sample=False, streamer=clock, pad_token_id=0,
    )  # fmt: skip
    return (clock.times[-1] - clock.times[1]) / (TOKENS - 1)


def generation(hybrid: HybridFHEModel, prompt: torch.Tensor, plain: float, record: Record) -> None:
    """Steady state: every decoding step of a generation, in batches of one epoch."""
    per_token(hybrid.model, prompt)
    samples, parts = [], []
    for _ in range(3):
        before = hybrid.stats.copy()
        samples.append(per_token(hybrid.model, prompt))
        parts.append(hybrid.stats - before)
    total = float(np.median(samples))
    target = "≤ 0.20" if "Llama" in type(hybrid.model).__name__ else "≤ 0.15"
    record.add(Measurement.of("encrypted, a token, everything", samples, "s", target=target))
    prepare = [part.seconds["prepare"] / max(part.masks, 1) for part in parts]
    server = [part.seconds["online_server"] / part.rows for part in parts]
    record.add(Measurement.of("  of which prepare, a mask", prepare, "s"))
    record.add(Measurement.of("  of which online server, a row", server, "s"))
    online = total - float(np.median(prepare))
    record.add(Measurement(name="  online (server and client), a token", value=online, unit="s"))
    record.add(Measurement(name="total / plaintext", value=total / plain, unit="×", target="≤ 2"))
    record.add(Measurement(name="online / plaintext", value=online / plain, unit="×", target="≤ 1"))
    count_bytes(hybrid, parts[-1], record)


def count_bytes(hybrid: HybridFHEModel, part: Stats, record: Record) -> None:
    """Bytes at the transport against the protocol's formulas 3 I, 2.25 S, mask + keys / M."""
    params, manifest = hybrid.params, hybrid.manifest
    factory = hybrid._session._factory  # type: ignore[union-attr]
    factory.make(len(factory._sets_left), full=True)
    before = hybrid.stats.copy()
    factory.make(2 * params.masks_per_epoch, full=True)
    ahead = (hybrid.stats - before).bytes_up_ahead / (2 * params.masks_per_epoch)
    before = hybrid.stats.copy()
    with torch.no_grad():
        hybrid.model(torch.zeros(1, 1, dtype=torch.long))
    one = hybrid.stats - before
    formulas = {
        "up, online": (one.bytes_up_online, 3 * manifest.total_inputs),
        "down, online": (one.bytes_down_online, 2.25 * manifest.total_slots),
        "up, ahead": (ahead, params.mask_bytes + params.epoch_key_bytes / params.masks_per_epoch),
    }
    for name, (measured, formula) in formulas.items():
        share = measured / formula
        record.add(
            Measurement(name=f"bytes a token {name}", value=measured, unit="B", share_of_limit=share, limit="formula")
        )


def prompt_rows(hybrid: HybridFHEModel, record: Record) -> None:
    """A prompt of 64 rows, masks included, logits of the last row."""
    samples = []
    for _ in range(3):
        hybrid.model(torch.zeros(1, 1, dtype=torch.long))
        hybrid._session._pool.clear()  # type: ignore[union-attr]
        ids = torch.randint(0, 40000, (1, 64))
        start = time.perf_counter()
        hybrid.model(ids, logits_to_keep=1)
        samples.append((time.perf_counter() - start) / 64)
    record.add(Measurement.of("a prompt row, 64 rows, everything", samples, "s", target="≤ 0.10"))


def limits(hybrid: HybridFHEModel, record: Record) -> None:
    """The Ĥ product against this machine's read bandwidth and multiply-add peak, and the other steps of a preparation."""
    bandwidth, peak = read_bandwidth(), multiply_add_peak()
    record.add(Measurement(name="read bandwidth, both cores", value=bandwidth / 1e9, unit="GB/s"))
    record.add(Measurement(name="32-bit multiply-add into 64 bits, data in L1, both cores", value=peak / 1e9, unit="G/s"))
    params, hint = hybrid.params, hybrid._engine.hint  # type: ignore[union-attr]
    ring, segments = ring_of(params), hint._segments
    rng = np.random.default_rng(0)
    size = sum(segment.hint.nbytes for segment in segments.values())
    work = 2 * params.n * hybrid.manifest.total_slots
    for masks in (1, 4, 16):
        shape = (2, params.N, masks, params.leaves)
        leaves = rng.integers(0, params.outer_primes[1], shape, dtype=np.uint32)
        times = [best(lambda: [cpu.product(s.hint, leaves, ring) for s in segments.values()]) for _ in range(5)]  # noqa: B023
        middle = float(np.median(times))
        share = size / middle / bandwidth if masks == 1 else work * masks / middle / peak
        limit = "read bandwidth" if masks == 1 else "multiply-add peak"
        name = f"Ĥ product, {masks} masks at once, a mask"
        record.add(Measurement.of(name, [t / masks for t in times], "s", bytes=size, share_of_limit=share, limit=limit))
    steps(hybrid, record)


def steps(hybrid: HybridFHEModel, record: Record) -> None:
    """What a preparation of one epoch costs beside the product: expansion, combination, and the client's half."""
    params, hint, session = hybrid.params, hybrid._engine.hint, hybrid._session  # type: ignore[union-attr]
    ring, count = ring_of(params), params.masks_per_epoch
    rng = np.random.default_rng(0)
    halves = rng.integers(0, params.outer_primes[1], (count, 2, params.N), dtype=np.uint32)
    keys = rng.integers(0, params.outer_primes[1], (params.levels, 2, 3, params.N), dtype=np.uint32)
    digits = [hint._digits[m] for m in range(count)]
    times = [best(lambda: cpu.expand_b(halves, digits, [keys] * count, ring)) / count for _ in range(3)]
    record.add(Measurement.of("expansion, a mask", times, "s"))
    times = []
    for _ in range(3):
        total = 0.0
        for segment in hint._segments.values():
            blocks = segment.digits.shape[1]
            products = rng.integers(0, params.outer_primes[1], (1, blocks * params.fold, 2, params.N), dtype=np.uint32)
            rotation = keys[: params.fold - 1]
            total += best(lambda: cpu.combine_b(products, [segment.digits[0]], [rotation], 32, ring))  # noqa: B023
        times.append(total)
    record.add(Measurement.of("combination, a mask", times, "s"))
    from veil.crypto.secret import OuterKey, inner_secret
    from veil.random import SecretRng

    rng_secret = SecretRng()
    key = OuterKey(params, cpu, rng_secret)
    secret = inner_secret(rng_secret, params)
    names = tuple(hybrid.manifest.segments)
    times = [best(lambda: session._factory.maker.make(0, 0, key, secret, names, rng_secret)) for _ in range(5)]
    record.add(Measurement.of("the client's half, a mask", times, "s"))


def best(work: Any) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@njit(cache=True, parallel=True)
def _read(data, parts):  # type: ignore[no-untyped-def]
    total = np.zeros(parts, np.uint64)
    size = data.size // parts
    for part in prange(parts):
        total[part] = data[part * size : (part + 1) * size].sum()
    return total


def read_bandwidth() -> float:
    """Bytes a second that both cores read from memory, the best of five."""
    data = np.ones(1 << 27, dtype=np.uint64)
    _read(data, 64)
    return data.nbytes / min(best(lambda: _read(data, 64)) for _ in range(5))


@njit(cache=True, parallel=True)
def _peak(rows, leaves, repeats):  # type: ignore[no-untyped-def]
    for _ in prange(repeats):
        sums = np.empty((rows.shape[0], leaves.shape[1]), np.uint64)
        for _repeat in range(64):
            cpu_tile.dots(rows, leaves, sums)


def multiply_add_peak() -> float:
    """Multiply-adds a second of the product's inner loop when everything is in the first-level cache."""
    rows = np.ones((4, 256), dtype=np.uint32)
    leaves = np.ones((256, 16), dtype=np.uint32)
    _peak(rows, leaves, 2)
    return 4 * 16 * 256 * 64 * 512 / min(best(lambda: _peak(rows, leaves, 512)) for _ in range(5))


if __name__ == "__main__":
    with torch.no_grad():
        main()
