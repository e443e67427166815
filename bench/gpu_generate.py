"""Whole tokens of GPT-2's shapes with the server's half on a card and the client on the host, beside plaintext on the card.

    python bench/gpu_generate.py --out bench/results/gpu-generate.json --commit $(git rev-parse --short HEAD)

The client on the card, which issue 4's targets are about, does not exist yet; this is what the seam gives without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from veil import HybridFHEModel
from veil.model.modules import select_modules

TOKENS = 49


class Clock:
    """A streamer that keeps the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def tokens(model: Any, prompt: torch.Tensor) -> tuple[list[int], float]:
    """The greedy continuation, and seconds a token without the prompt."""
    clock = Clock()
    out = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
        do_sample=False, streamer=clock, pad_token_id=0,
    )  # fmt: skip
    return out[0].tolist(), (clock.times[-1] - clock.times[1]) / (TOKENS - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    prompt = torch.randint(0, 50257, (1, 8))
    model.to("cuda")
    plain = [tokens(model, prompt.to("cuda"))[1] for _ in range(4)][1:]
    model.to("cpu")
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    hybrid.compile_model(prompt, device="cuda")
    start = time.perf_counter()
    hybrid.set_fhe_mode("execute")
    built_s = time.perf_counter() - start
    hybrid.set_fhe_mode("disable")
    clear, _ = tokens(hybrid.model, prompt)
    hybrid.set_fhe_mode("execute")
    runs, parts = [], []
    for _ in range(4):
        before = hybrid.stats.copy()
        encrypted, seconds = tokens(hybrid.model, prompt)
        runs.append(seconds)
        parts.append(hybrid.stats - before)
    part = parts[-1]
    record = {
        "benchmark": "gpu_generate",
        "model": "GPT-2 124M shapes, random weights",
        "card": torch.cuda.get_device_name(),
        "commit": args.commit,
        "kernels": hybrid.stats.kernels,
        "build_s": built_s,
        "plaintext_float32_s": statistics.median(plain),
        "encrypted_s": statistics.median(runs[1:]),
        "encrypted_low_high_s": [min(runs[1:]), max(runs[1:])],
        "prepare_s_a_mask": part.seconds["prepare"] / max(part.masks, 1),
        "online_server_s_a_row": part.seconds["online_server"] / part.rows,
        "same_tokens_as_clear": sum(a == b for a, b in zip(clear, encrypted, strict=True)) - prompt.shape[1],
        "new_tokens": TOKENS,
    }
    print(json.dumps(record, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
