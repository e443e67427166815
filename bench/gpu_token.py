"""A whole token of `generate` on one card, client included: encrypted, in clear, and plaintext, with random weights.

Called by bench/gpu.py; alone, for one model:

    python bench/gpu_token.py gpt2
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from veil import noise
from veil.crypto.device_hint import needed_bytes
from veil.kernels import cuda, reference
from veil.model.hybrid import HybridFHEModel
from veil.model.modules import select_modules
from veil.model.quantize import row_norms
from veil.model.token_graph import TokenGraph

PROMPT_ROWS, TOKENS = 8, 160
STATIC = {"cache_implementation": "static", "disable_compile": True}
TARGETS_US = {"gpt2": 15_000.0, "llama-1b": 25_000.0}


def build(name: str) -> Any:
    """A model of the shapes of GPT-2 124M or Llama-3.2-1B on the card."""
    torch.manual_seed(1)
    with torch.device("cuda"):
        if name == "gpt2":
            return GPT2LMHeadModel(GPT2Config()).eval()
        config = LlamaConfig(
            vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


class Clock(BaseStreamer):
    """When each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def generate(model: Any, prompt: torch.Tensor, tokens: int, **settings: Any) -> list[float]:
    """Microseconds of each generated token after the first."""
    clock = Clock()
    config = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=clock, **config, **settings)
    torch.cuda.synchronize()
    times = np.diff(np.array(clock.times[1:])) * 1e6  # the first put is the prompt's
    assert len(times) == tokens - 1
    return times.tolist()


def check(bench: Any, name: str, hybrid: HybridFHEModel) -> None:
    """One fresh row of some groups, step by step, against NumPy: ciphertext, answer and result."""
    session: Any = hybrid._session
    model, engine = session.model, session._transport
    spec, groups = model.params.spec, model.manifest.groups
    for group in (0, 1, len(groups) - 2, len(groups) - 1):
        info, start, first = groups[group], model.manifest.starts[group], session._factory.maker.group_start(group)
        x = torch.randn((1, info.width), device="cuda")
        y = session.evaluate(group, x)
        mask, tau = session._selected, cuda.to_numpy(session._taus[group : group + 1])
        rows = cuda.to_numpy(mask.rows[None, first : first + info.width])
        mu = cuda.to_numpy(mask.mu[info.segment][None, start : start + info.rows])
        shares, place = engine._shares[mask.number]
        h = cuda.to_numpy(shares[info.segment][place : place + 1, start : start + info.rows])
        few = slice(0, 512)
        data = reference.encrypt(cuda.to_numpy(x), tau, rows, spec.input_bits)
        weights = cuda.to_numpy(engine._weights[group][few])
        reply = reference.answer(data, weights, h[:, few], spec.input_bits, spec.result_bits)
        values = reference.decrypt(reply, mu[:, few], spec.result_bits)
        scaling = session._scalings[group]
        scale, bias = cuda.to_numpy(scaling.scale[few]), cuda.to_numpy(scaling.bias[few])
        bench.check(f"{name}: whole step of group {group}", y[:, few], reference.dequantize(values, tau, scale, bias))
        exact = x.double() @ (engine._weights[group][few].double() * scaling.scale[few, None]).T + scaling.bias[few]
        sigma = np.sqrt(noise.result(model.params, row_norms(weights))) * scale / tau
        ratio = float(np.std((cuda.to_numpy(y[0, few]) - cuda.to_numpy(exact[0])) / sigma))
        if not 0.8 < ratio < 1.2:
            raise SystemExit(f"WRONG: {name}: the error of group {group} is {ratio:.2f} of what is predicted")


def bench_token(bench: Any, name: str) -> None:
    """Rows of a model's whole token: plaintext, clear integers, encrypted; masks included, as `generate` makes them."""
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    model = build(name)
    names = select_modules(model, "linear")
    prompt = torch.arange(1, 1 + PROMPT_ROWS, device="cuda")[None]
    seconds = {"build": round(time.perf_counter() - started, 2)}
    section = f"token, {name}"
    generate(model, prompt, 8)
    plain = generate(model, prompt, TOKENS)
    bench.row(section, "plaintext float32, eager generate", plain, per="token")
    forward = model.forward
    graph = TokenGraph(forward, None)
    model.forward = functools.wraps(forward)(lambda *args, **kwargs: _or(graph(kwargs), lambda: forward(*args, **kwargs)))
    generate(model, prompt, 8, **STATIC)
    plain_graph = generate(model, prompt, TOKENS, **STATIC)
    bench.row(section, "plaintext float32, one graph a token", plain_graph, per="token")
    model.forward = forward
    started = time.perf_counter()
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(prompt, device="cuda")
    seconds["compile"] = round(time.perf_counter() - started, 2)
    started = time.perf_counter()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    hybrid.set_fhe_mode("execute")
    torch.cuda.synchronize()
    loading = torch.cuda.max_memory_allocated() - held
    seconds["hint_and_session"] = round(time.perf_counter() - started, 2)
    started = time.perf_counter()
    generate(model, prompt, 20)
    generate(model, prompt, 40, **STATIC)
    seconds["first_tokens"] = round(time.perf_counter() - started, 2)
    check(bench, section, hybrid)
    means = {}
    for label, settings in (("launch by launch", {}), ("one graph a token", STATIC)):
        before = hybrid.stats.copy()
        times = generate(model, prompt, TOKENS, **settings)
        spent = hybrid.stats - before
        means[label] = statistics.fmean(times)
        bench.row(section, f"encrypted, {label}", times, per="token", target_us=TARGETS_US[name])
        bench.row(section, f"encrypted, {label}, mean with masks", [means[label]], per="token", target_us=TARGETS_US[name])
        rows = TOKENS + PROMPT_ROWS - 1
        seconds[f"prepare_us_a_token, {label}"] = round(spent.seconds["prepare"] * 1e6 / rows, 1)
    graph: Any = hybrid._graph
    slots = list(hybrid.manifest.segments.values())
    weight_bytes = sum(group.width * group.rows for group in hybrid.manifest.groups)
    bench.notes[section] = {
        "kernels": hybrid.stats.kernels, "seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated(),
        "loading_bytes": loading, "stated_bytes": needed_bytes(hybrid.params, slots, weight_bytes),
        "graph_recorded": graph is not None and graph._recorded is not None,
        "ratio_to_eager_plaintext": {label: round(mean / statistics.fmean(plain), 3) for label, mean in means.items()},
        "ratio_of_graphs": round(means["one graph a token"] / statistics.fmean(plain_graph), 3),
        "profile": profile(model, prompt),
    }  # fmt: skip
    print(section, json.dumps(bench.notes[section], indent=1), flush=True)
    hybrid.close()


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise() if value is None else value


def profile(model: Any, prompt: torch.Tensor, tokens: int = 33) -> dict[str, Any]:
    """Device time a token by kernel, of all but the prompt roughly: the largest of them, the sum, and the wall time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as trace:
        generate(model, prompt, tokens, **STATIC)
    kernels = sorted(trace.key_averages(), key=lambda row: -row.self_device_time_total)
    busy = sum(row.self_device_time_total for row in kernels)
    top = {
        row.key[:60]: [round(row.self_device_time_total / tokens, 1), round(row.count / tokens, 1)] for row in kernels[:16]
    }
    return {"device_us_a_token": round(busy / tokens, 1), "kernels_us_and_launches_a_token": top}


class _Alone:
    """Prints what bench/gpu.py would keep."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}

    def row(self, section: str, name: str, times: list[float], **_: Any) -> None:
        middle = sorted(times)
        print(f"{section}: {name}: {statistics.median(times):,.0f} us, {middle[0]:,.0f} to {middle[-1]:,.0f}", flush=True)

    def check(self, name: str, actual: torch.Tensor, expected: Any) -> None:
        if not np.array_equal(cuda.to_numpy(actual), expected):
            raise SystemExit(f"WRONG: {name}")


if __name__ == "__main__":
    bench_token(_Alone(), sys.argv[1])
