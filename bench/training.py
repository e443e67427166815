"""Training through encrypted layers: a validation loss against plain PyTorch's, and what a step costs.

    python -m bench training curve [--steps 200] [--minutes 30] [--out bench/results/training-curve.json]
    python -m bench training step [--model llama-1b] [--rows 4x16] [--out bench/results/training-llama-1b.json]
    python -m bench training signal [--out bench/results/training-signal.json]

``curve``: SmolLM2, LoRA r = 8 on q and v, on the prose in ``veil/report``, the same seed and order of examples for float
and encrypted; ``--plot`` draws both. ``--model small`` is a model of bytes that is made in seconds, for busy machines.
``step``: one batch forward, backward and step, plaintext and encrypted in one run. ``signal``: signal to noise of each
layer's Wᵀ·g, measured on SmolLM2's gradients, with its prediction.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding

from bench.record import Measurement, Record
from veil import HybridFHEModel, noise
from veil.bench import machine
from veil.bench.subjects import Loaded, load, release_floats
from veil.bundle.constants import row_norms
from veil.compile.sample import TEXT, sample_tokens
from veil.runtime.modules import select_modules
from veil.sources.models import Source, load_model
from veil.sources.quiet import quiet
from veil.training.adapters import LoraSettings, add_lora
from veil.training.examples import Data, Example, divided, read_examples
from veil.training.loop import FineTuning, Schedule

LORA = LoraSettings(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))
CONCRETE_ML_S = 5322.0
"""Seconds that Concrete ML publishes for a batch of 4 × 16 tokens of Llama-3.2-1B on a CPU."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "step", "signal"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the step that goes on at this time")
    parser.add_argument("--threads", type=int, default=0, help="torch's, for both")
    parser.add_argument("--validate-every", type=int, default=20)
    parser.add_argument("--mode", default="execute")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of both halves, and of plaintext")
    parser.add_argument("--model", default="", help="of curve: smollm2 or small; of step: llama-1b, gpt2, smollm2")
    parser.add_argument("--rows", default="4x16", help="examples x tokens of a batch")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    {"curve": curve, "step": step, "signal": signal}[args.what](args)


# Loss against plain PyTorch's ---------------------------------------------------------------------------------------------


def curve(args: argparse.Namespace) -> None:
    """Train twice from one start, a step of each in turn, for as long as there is time; each step is written down."""
    out = args.out or RESULTS / "training-curve.json"
    torch.set_num_threads(args.threads or torch.get_num_threads())
    float_source = small() if args.model == "small" else load_model("smollm2")
    float_source.model.to(args.device)
    source = replace(float_source, model=copy.deepcopy(float_source.model))
    data = prose(source, 64)
    schedule = Schedule(steps=args.steps, batch=4, learning_rate=2e-4, seed=1)
    about = {"model": source.name, "lora": "r 8, q and v", "batch": "4 x 64", "schedule": args.steps, "mode": args.mode}
    about |= {"device": args.device}
    record = Record(benchmark="training, curve", parameters=about, machine=machine_of(args.device))
    hybrid = compiled(source.model, sample_tokens(source), args.device)
    hybrid.set_fhe_mode(args.mode)
    models = {"float": (float_source.model, None), args.mode: (hybrid.model, hybrid.stats)}
    tunings = {}
    for name, (model, stats) in models.items():
        torch.manual_seed(1)
        with quiet():
            tunings[name] = FineTuning(add_lora(model, LORA), data, schedule, stats=stats)
    validated(record, tunings)
    end = time.monotonic() + 60 * args.minutes
    number = 0
    for pair in zip(*(tuning.steps() for tuning in tunings.values()), strict=True):
        for name, step in zip(tunings, pair, strict=True):
            record.add(Measurement(name=f"{name}, loss, step {step.number}", value=step.loss, unit="nats", bytes=step.bytes))
            record.add(Measurement(name=f"{name}, seconds, step {step.number}", value=step.seconds, unit="s"))
            print(f"{name} {step}", flush=True)
        number = pair[0].number
        over = number == args.steps or time.monotonic() > end
        if over or number % args.validate_every == 0:
            validated(record, tunings)
        record.write(out)
        if over:
            break
    ends = [record.value(f"{name}, validation, step {number}") for name in tunings]
    record.add(
        Measurement(name="validation against float", value=100 * (ends[1] / ends[0] - 1), unit="%", target="within 1 %")
    )
    hybrid.close()
    record.write(out)
    record.show()
    if args.plot:
        draw(record, args.plot)


class Bytes:
    """A tokenizer of bytes."""

    chat_template = None
    eos_token_id = None

    def __call__(self, text: str, **_: Any) -> Any:
        ids = list(text.encode())
        return BatchEncoding({"input_ids": torch.tensor([ids]) if _.get("return_tensors") else ids})


def small() -> Source:
    """A Llama of four layers, width 128, over bytes, after 200 steps of ordinary training on the calibration text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, tie_word_embeddings=False, **sizes))
    text = torch.tensor(list(TEXT.encode()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        starts = torch.randint(0, len(text) - 64, (8,))
        batch = torch.stack([text[start : start + 64] for start in starts.tolist()])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tokenizer: Any = Bytes()
    return Source(name="small", model=model.eval(), tokenizer=tokenizer, origin="trained here")


def validated(record: Record, tunings: dict[str, FineTuning]) -> None:
    """Add each model's validation loss at the step that it is at."""
    for name, tuning in tunings.items():
        loss = tuning.validate()
        assert loss is not None
        record.add(Measurement(name=f"{name}, validation, step {tuning.step}", value=loss, unit="nats"))
        print(f"{name} validation, step {tuning.step}: {loss:.5f}", flush=True)


def prose(source: Source, tokens: int) -> Data:
    """The prose that reports use, in pieces; a tenth for validation."""
    with resources.as_file(resources.files("veil.report").joinpath("prose.txt")) as path, quiet():
        assert source.tokenizer is not None
        examples = read_examples(path, source.tokenizer, tokens)
    whole: tuple[Example, ...] = tuple(example for example in examples if len(example.ids) == tokens)
    return divided(whole, 0.15, seed=1)


def draw(record: Record, path: Path) -> None:
    """Both curves, loss of each step and validation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, color in (("float", "tab:gray"), (str(record.parameters["mode"]), "tab:blue")):
        for kind, style in (("loss", ":"), ("validation", "-")):
            rows = [
                (int(row.name.rsplit(" ", 1)[1]), row.value) for row in record.rows if row.name.startswith(f"{name}, {kind}")
            ]
            axes.plot(*zip(*rows, strict=True), style, color=color, label=f"{name}, {kind}")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.legend()
    figure.savefig(path)


# What a batch costs -------------------------------------------------------------------------------------------------------


def step(args: argparse.Namespace) -> None:
    """One batch of random tokens: forward, backward, step; plaintext first, then encrypted, in this process."""
    loaded: Loaded = load(args.model or "llama-1b")
    examples, tokens = (int(part) for part in args.rows.split("x"))
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    ids = torch.randint(0, vocabulary, (examples, tokens), generator=torch.Generator().manual_seed(0)).to(args.device)
    loaded.model.to(args.device)
    about = {"model": loaded.origin, "batch": args.rows, "lora": "r 8, q and v", "device": args.device}
    record = Record(benchmark="training, step", parameters=about, machine=machine_of(args.device))
    with quiet():
        adapted: Any = add_lora(loaded.model, LORA)
        plain = timed(batch_of(adapted, ids), 3)
        record.add(Measurement.of("plaintext, a batch", plain, "s"))
        model = adapted.unload()
        hybrid = compiled(model, ids[:1], args.device)
        release_floats(hybrid.model)
        hybrid.set_fhe_mode("execute")
        one = batch_of(add_lora(hybrid.model, LORA), ids)
        one()
        before = hybrid.stats.copy()
        seconds = timed(one, 3)
    spent = hybrid.stats - before
    online, offline = spent.bytes_up_online + spent.bytes_down_online, spent.bytes_up_offline + spent.bytes_down_offline
    record.add(Measurement.of("encrypted, a batch, offline rows included", seconds, "s", target="≤ 2 × plaintext"))
    add = record.add
    add(
        Measurement(name="encrypted / plaintext", value=float(np.median(seconds) / np.median(plain)), unit="×", target="≤ 2")
    )
    add(
        Measurement(
            name="Concrete ML's published seconds / encrypted", value=CONCRETE_ML_S / float(np.median(seconds)), unit="×"
        )
    )
    add(Measurement(name="bytes a batch, online", value=online / 3, unit="B"))
    add(Measurement(name="bytes a batch, offline", value=offline / 3, unit="B"))
    add(Measurement(name="round trips a batch", value=spent.trips / 3, unit=""))
    add(Measurement(name="making rows, both directions", value=spent.seconds["prepare"] / 3, unit="s"))
    add(Measurement(name="hint, server", value=hybrid.hint_bytes, unit="B"))
    hybrid.close()
    record.write(args.out or RESULTS / f"training-{loaded.name}.json")
    record.show()


def batch_of(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """A training step of a model on one batch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def run() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if ids.is_cuda:
            torch.cuda.synchronize()

    return run


def timed(run: Callable[[], None], times: int) -> list[float]:
    """Seconds of some runs."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def compiled(model: Any, sample: torch.Tensor, device: str = "cpu") -> HybridFHEModel:
    """A model compiled for training, every linear layer remote; the sample goes where the model is."""
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    with quiet():
        hybrid.compile_model(sample.to(device), trainable=True, device=device)
    return hybrid


def machine_of(device: str) -> str:
    """The processor's name, or the GPU's."""
    return torch.cuda.get_device_name() if device == "cuda" else machine.name()


# Signal to noise ----------------------------------------------------------------------------------------------------------


def signal(args: argparse.Namespace) -> None:
    """Decibels of every transposed group on the gradients of 64 tokens of prose, in ``execute`` against ``disable``."""
    source = load_model("smollm2")
    ids = torch.tensor([prose(source, 64).validation[0].ids])
    hybrid = compiled(source.model, sample_tokens(source))
    record = Record(benchmark="training, signal", parameters=hybrid.params.spec.to_dict() | {"model": source.name})
    seen: dict[int, Any] = {}
    gradients_of(hybrid, ids, "disable", seen)
    session_seen = {group: values[0] for group, values in seen.items()}
    hybrid.set_fhe_mode("execute")
    session = hybrid.sides.local
    assert session is not None and hybrid.sides.compiled is not None and hybrid.sides.compiled.weights is not None
    measured, predicted = [], []
    for group, rows in session_seen.items():
        info, own = hybrid.manifest.groups[group], hybrid.sides.compiled.constants[group]
        error = session.evaluate(group, rows) - seen[group][1]
        bits = noise.WireBits(info.input_bits, info.result_bits)
        variance = noise.result(hybrid.params, row_norms(hybrid.sides.compiled.weights[group]), bits)
        norms = np.linalg.norm(rows if own.divisors is None else rows / own.divisors, axis=1)
        tau = hybrid.sides.scalings[group].target / norms[norms > 0]
        expected = (variance * own.scale.astype(np.float64) ** 2).sum() * (1 / tau**2).sum()
        power = float((seen[group][1].astype(np.float64) ** 2).sum())
        found = 10 * np.log10(power / float((error.astype(np.float64) ** 2).sum()))
        offline = 10 * np.log10(power / expected)
        assert info.transposed is not None
        name = hybrid.manifest.groups[info.transposed].name
        record.add(
            Measurement(name=f"{name}, transposed", value=float(found), unit="dB", target=f"predicted {offline:.1f} dB")
        )
        measured.append(float(found))
        predicted.append(float(offline))
    record.add(Measurement.of("Wᵀ·g, every layer", measured, "dB"))
    record.add(Measurement.of("measured - predicted", [a - b for a, b in zip(measured, predicted, strict=True)], "dB"))
    hybrid.close()
    record.write(args.out or RESULTS / "training-signal.json")
    record.show()


def gradients_of(hybrid: HybridFHEModel, ids: torch.Tensor, mode: str, seen: dict[int, Any]) -> None:
    """Rows and results of each transposed group for the loss of some tokens, in a mode without encryption."""
    hybrid.set_fhe_mode(mode)
    evaluator: Any = hybrid.sides.router.evaluator if hybrid.sides.router else None
    evaluate = evaluator.evaluate

    def noted_rows(group: int, x: Any, slots: int | None = None) -> Any:
        result = evaluate(group, x, slots)
        if hybrid.manifest.groups[group].transposed is not None:
            seen[group] = (np.array(x), np.array(result))
        return result

    evaluator.evaluate = noted_rows
    hybrid.model(input_ids=ids, labels=ids).loss.backward()
    evaluator.evaluate = evaluate


if __name__ == "__main__":
    main()
