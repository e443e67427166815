"""Accuracy of SmolLM2 under veil: tokens, KL divergence, perplexity, and every layer's noise against its prediction.

    python -m bench quality [--out bench/results/quality.json]
    python -m bench quality --fuse-norms --out bench/results/quality-fused.json

Ten short questions, float layers against integer ones; greedy decoding in ``execute`` against ``disable``; KL and perplexity
of ``simulate`` against float over the prose in ``veil/report``; error variance of each group in ``execute`` and in
``simulate`` against `veil.noise`, and signal to noise.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from bench.questions import ANSWER_TOKENS, QUESTIONS, is_right
from bench.record import Measurement, Record
from veil import HybridFHEModel
from veil.compile.sample import sample_tokens
from veil.report import measure
from veil.report.inside import EIGHT_BIT
from veil.report.layers import layer_quality
from veil.runtime.modules import select_modules
from veil.sources.models import load_model

PROMPTS = (
    "What is the capital of France?",
    "Explain in simple words why the sky is blue.",
    "Write a short story about a fox that learns to read.",
)
console = Console(width=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/quality.json"))
    parser.add_argument("--fuse-norms", action="store_true", help="fuse the norms")
    args = parser.parse_args()
    source = load_model("smollm2")
    model, tokenizer = source.model, source.tokenizer
    assert tokenizer is not None
    prose = resources.files("veil.report").joinpath("prose.txt").read_text(encoding="utf-8")
    ids = tokenizer(prose, return_tensors="pt").input_ids[:, :1100]
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    hybrid.compile_model(sample_tokens(source), fuse_norms="on" if args.fuse_norms else "off")
    record = Record(benchmark="quality", parameters=hybrid.params.spec.to_dict() | {"model": "SmolLM2-135M-Instruct"})
    perplexity(hybrid, ids, record)
    layers(hybrid, ids[:, :64], record)
    questions(hybrid, tokenizer, record)
    greedy(hybrid, tokenizer, record)
    record.show()
    record.write(args.out)


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def perplexity(hybrid: HybridFHEModel, ids: torch.Tensor, record: Record) -> None:
    """KL divergence from float and perplexity, mode by mode."""
    modes = measure.fidelity(hybrid, [ids], ("disable", "simulate", EIGHT_BIT), quiet, "reading")
    for mode in modes:
        name = f"perplexity, {mode.name}, {mode.tokens} tokens"
        record.add(Measurement(name=name, value=mode.perplexity, unit=""))
    for mode in modes[1:]:
        target = "≤ 0.007" if mode.name == "simulate" else ""
        record.add(Measurement(name=f"KL divergence from float, {mode.name}", value=mode.kl, unit="nats", target=target))
        rise = (mode.perplexity / modes[0].perplexity - 1) * 100
        target = "≤ 1.2" if mode.name == "simulate" else ""
        record.add(Measurement(name=f"perplexity above float, {mode.name}", value=rise, unit="%", target=target))


def layers(hybrid: HybridFHEModel, ids: torch.Tensor, record: Record) -> None:
    """Error variance and signal to noise of every layer, encrypted and simulated, beside the prediction."""
    encrypted, simulated = (layer_quality(hybrid, ids, mode) for mode in ("execute", "simulate"))
    table = Table(title=f"every layer's output over {ids.shape[1]} tokens")
    for column in ("layer", "SNR dB", "predicted dB", "8-bit dB", "var / predicted", "var / simulated"):
        table.add_column(column)
    against = [10 ** ((other.snr_db - layer.snr_db) / 10) for layer, other in zip(encrypted, simulated, strict=True)]
    for layer, ratio in zip(encrypted, against, strict=True):
        shown = (f"{layer.snr_db:.1f}", f"{layer.predicted_db:.1f}", f"{layer.eight_bit_db:.1f}", f"{layer.ratio:.3f}")
        table.add_row(layer.name, *shown, f"{ratio:.3f}")
        record.notes.append(
            f"{layer.name}: SNR {layer.snr_db:.1f} dB (predicted {layer.predicted_db:.1f}, 8-bit activations "
            f"{layer.eight_bit_db:.1f}), variance {layer.ratio:.3f} of predicted"
        )
    console.print(table)
    snr, ratios = [layer.snr_db for layer in encrypted], [layer.ratio for layer in encrypted]
    record.add(Measurement.of("signal to noise of a layer", snr, "dB", target="median ≥ 44, least ≥ 32"))
    record.add(Measurement.of("error variance / predicted, by layer", ratios, "", target="0.75 … 1.25"))
    record.add(Measurement.of("error variance execute / simulate, by layer", against, "", target="0.80 … 1.20"))


def questions(hybrid: HybridFHEModel, tokenizer: Any, record: Record) -> None:
    """Greedy answers to ten short questions: how many are right, and how many of the integer layers are those of float."""
    answers: dict[str, list[str]] = {}
    model: Any = hybrid.model
    for mode in ("torch", "disable"):
        hybrid.set_fhe_mode(mode)
        answers[mode] = []
        for question, _ in QUESTIONS:
            turns = [{"role": "user", "content": question}]
            chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            done = model.generate(**chat, max_new_tokens=ANSWER_TOKENS, do_sample=False)
            answers[mode].append(tokenizer.decode(done[0, chat["input_ids"].shape[1] :], skip_special_tokens=True))
    for mode, name in (("torch", "float"), ("disable", "integer layers")):
        right = sum(is_right(number, answer) for number, answer in enumerate(answers[mode]))
        record.add(Measurement(name=f"questions answered right, {name}", value=right, unit=f"of {len(QUESTIONS)}"))
    same = sum(one == other for one, other in zip(answers["torch"], answers["disable"], strict=True))
    record.add(Measurement(name="questions answered alike", value=same, unit=f"of {len(QUESTIONS)}"))
    for (question, _), one, other in zip(QUESTIONS, answers["torch"], answers["disable"], strict=True):
        record.notes.append(f"{question} float: {one!r}; integer: {other!r}")


def greedy(hybrid: HybridFHEModel, tokenizer: Any, record: Record) -> None:
    """32 greedy tokens for three prompts; a difference is listed with the logit gap and the noise of that gap."""
    same, model = 0, cast(Any, hybrid.model)
    for number, prompt in enumerate(PROMPTS, 1):
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        texts = {}
        for mode in ("disable", "execute"):
            hybrid.set_fhe_mode(mode)
            done = model.generate(
                **chat, max_new_tokens=32, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            texts[mode] = (done.sequences[0, chat["input_ids"].shape[1] :].tolist(), done.scores)
        clear, encrypted = texts["disable"][0], texts["execute"][0]
        if clear == encrypted:
            same += 1
            record.notes.append(f"{prompt!r}: 32 tokens equal: {tokenizer.decode(encrypted)!r}")
            continue
        at = next(i for i, (a, b) in enumerate(zip(clear, encrypted, strict=False)) if a != b)
        scores = texts["disable"][1][at][0]
        gap = float(scores[clear[at]] - scores[encrypted[at]])
        prefix = torch.cat([chat["input_ids"], torch.tensor([clear[:at]], dtype=torch.long)], dim=1)
        sigma = gap_noise(hybrid, prefix, clear[at], encrypted[at])
        record.add(Measurement(name=f"gap / its predicted noise where prompt {number} differs", value=gap / sigma, unit="σ"))
        record.notes.append(
            f"{prompt!r}: differs at token {at}: {tokenizer.decode(clear[at])!r} against "
            f"{tokenizer.decode(encrypted[at])!r}, logit gap {gap:.4f}, predicted noise of that gap σ {sigma:.4f}"
        )
    record.add(Measurement(name="prompts with 32 equal greedy tokens", value=same, unit=f"of {len(PROMPTS)}"))


def gap_noise(hybrid: HybridFHEModel, prefix: torch.Tensor, first: int, second: int) -> float:
    """Standard deviation of the gap between two logits after ``prefix``, over 16 simulated forward passes."""
    hybrid.set_fhe_mode("simulate")
    with torch.no_grad():
        last = [hybrid.model(prefix, logits_to_keep=1).logits[0, -1] for _ in range(16)]
    return float(torch.stack([logits[first] - logits[second] for logits in last]).std())


if __name__ == "__main__":
    main()
