"""Checked answers on SmolLM2: rows of honest generation for as long as asked, and rows of simulated noise; no false alarm.

    python -m bench checks soak [--minutes 60] [--out bench/results/checks-soak.json]
    python -m bench checks noise [--rows 1000000] [--out bench/results/checks-noise.json]
    python -m bench checks cost [--device cuda --model llama-1b] [--out bench/results/checks-cost.json]

``soak`` generates over the loopback interface from a server process of its own, every row of every layer checked. ``noise``
puts whole passes' rows of normal residuals with the predicted covariance through the bound and the running test. ``cost``
times the checks of a token in one process, with both halves on the processor or on the GPU.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch

from bench.drafts import PROMPTS
from bench.processes import compiled, listening
from bench.record import Measurement, Record
from veil import HybridFHEModel
from veil.bench.generation import generate, random_prompt
from veil.bench.sides import STATIC_CACHE
from veil.bench.subjects import load, release_floats
from veil.bundle.header_file import half_digest
from veil.bundle.manifest import Manifest
from veil.checks.files import Vectors, save_vectors
from veil.checks.rows import BOUND, AnswerChecks
from veil.checks.running import RunningTest
from veil.checks.spread import covariance
from veil.checks.vectors import edges_of
from veil.errors import WrongAnswer
from veil.params import Params
from veil.runtime.modules import select_modules
from veil.sources.quiet import quiet

if TYPE_CHECKING:
    from veil.typing import LanguageModel

TOKENS = 96
STEP = 64
WRITTEN_EVERY_S = 60.0
RECORDED = 4
"""Tokens in which a GPU's pass is recorded, or a first batch begun."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["soak", "noise", "cost"])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each generation of `cost`")
    parser.add_argument("--model", default="gpt2", help="whose shapes, on a GPU: gpt2, llama-1b or smollm2")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of both halves, for `cost`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    where = "-gpu" if args.device == "cuda" else ""
    out = args.out or Path(f"bench/results/checks-{args.part}{where}.json")
    if args.part == "cost" and args.device == "cuda":
        cost_on_gpu(args.model, args.repetitions, args.tokens, out)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or compiled(Path(folder) / "smollm2")
        hybrid = HybridFHEModel.load(bundle, device="cpu")
        vectors = hybrid.sign_vectors("smollm2")
        if args.part == "noise":
            noise(hybrid.manifest, hybrid.params, vectors, args.rows, out)
            return
        save_vectors(half_digest(bundle / "client"), vectors)
        hybrid.close()
        if args.part == "soak":
            soak(bundle, 60.0 * args.minutes, out)
        else:
            cost(bundle, args.repetitions, args.tokens, out)


class Watch:
    """Notes the squares of residuals and the largest one, of every pass."""

    def __init__(self, checks: AnswerChecks) -> None:
        self.largest, self.squares, self.count, self.rows = 0.0, 0.0, 0, 0
        end_pass, self._checks = checks.end_pass, checks

        def noted() -> None:
            for group, residuals in checks.residuals:
                self.largest = max(self.largest, float(np.abs(residuals).max()))
                self.squares += float(np.square(residuals).sum())
                self.count += residuals.size
                self.rows += len(residuals) if group == 0 else 0
            end_pass()

        checks.end_pass = noted  # type: ignore[method-assign]

    def rows_of(self, record: Record, target: str = "") -> None:
        running = self._checks.running
        record.add(Measurement(name="rows through the model", value=self.rows, unit="", target=target))
        record.add(Measurement(name="residuals", value=self.count, unit=""))
        record.add(Measurement(name="mean square", value=self.squares / max(self.count, 1), unit="", target="1"))
        record.add(Measurement(name="largest", value=self.largest, unit="deviations", target=f"below {BOUND:.0f}"))
        most = running.reached
        record.add(Measurement(name="running test", value=most, unit="nats", target=f"below {running.limit:.1f}"))


def soak(bundle: Path, seconds: float, out: Path) -> None:
    """Generate until the time is over; the record is written every minute."""
    with listening("serve", bundle / "server", "--device", "cpu") as port:
        hybrid = HybridFHEModel.connect(f"127.0.0.1:{port}", bundle / "client", checked="require")
        assert hybrid.sides.remote is not None and hybrid.sides.remote.checks is not None
        watch, start, alarms, written = Watch(hybrid.sides.remote.checks), time.monotonic(), 0, 0.0
        generate: Any = hybrid.model.generate
        for prompt in itertools.cycle(PROMPTS):
            inputs = hybrid.tokenizer(prompt, return_tensors="pt")
            try:
                generate(**inputs, max_new_tokens=TOKENS, do_sample=True, temperature=1.0)
            except WrongAnswer as error:
                alarms += 1
                print(error, flush=True)
            spent = time.monotonic() - start
            if spent - written > WRITTEN_EVERY_S or spent > seconds or alarms:
                written = spent
                record = Record(benchmark="checked answers, smollm2 over loopback", parameters={"tokens": TOKENS})
                record.add(Measurement(name="generation", value=spent / 60.0, unit="min"))
                record.add(Measurement(name="false alarms", value=alarms, unit="", target="0"))
                watch.rows_of(record)
                record.write(out)
            if spent > seconds or alarms:
                break
        record.show()
        hybrid.close()


def noise(manifest: Manifest, params: Params, vectors: Vectors, rows: int, out: Path) -> None:
    """Rows through all groups, with normal residuals of the covariance that is predicted, 64 at a time.

    The whitened residuals are the independent ones that the correlated ones were made of. The record is written as it grows.
    """
    factors, freedom = [], []
    for group, own in zip(manifest.groups, vectors.groups, strict=True):
        spread = covariance(own, group, params)
        deviations = np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
        correlation = spread / (deviations[:, :, None] * deviations[:, None, :])
        factors.append(np.linalg.cholesky(correlation).astype(np.float32))
        freedom += [own.signs.shape[0]] * (len(edges_of(group)) - 1)
    running, rng = RunningTest(np.array(freedom)), np.random.default_rng()
    alarms, largest, total, count, done, start = 0, 0.0, 0.0, 0, 0, time.monotonic()

    def record() -> Record:
        made = Record(benchmark="checks of simulated noise, smollm2", parameters={"chunks": len(freedom)})
        made.add(Measurement(name="rows through the model", value=done, unit=""))
        made.add(Measurement(name="rows of a layer", value=done * len(factors), unit=""))
        made.add(Measurement(name="residuals", value=count, unit=""))
        made.add(Measurement(name="false alarms", value=alarms, unit="", target="0"))
        made.add(Measurement(name="mean square", value=total / count, unit="", target="1"))
        made.add(Measurement(name="largest", value=largest, unit="deviations", target=f"below {BOUND:.0f}"))
        limit = f"below {running.limit:.1f}"
        made.add(Measurement(name="running test", value=running.reached, unit="nats", target=limit))
        made.add(Measurement(name="took", value=time.monotonic() - start, unit="s"))
        return made

    while done < rows:
        squares, at = np.empty((STEP, len(freedom))), 0
        for factor in factors:
            normal: Any = rng.standard_normal((STEP, *factor.shape[:2]), dtype=np.float32)
            drawn = np.einsum("kab,rkb->rka", factor, normal)
            sizes = np.abs(drawn).max(axis=(1, 2))
            largest, alarms = max(largest, float(sizes.max())), alarms + int((sizes > BOUND).sum())
            total, count = total + float(np.square(drawn).sum()), count + drawn.size
            squares[:, at : at + len(factor)] = np.square(normal).sum(axis=2)
            at += len(factor)
        alarms += sum(running.add(row, 1) is not None for row in squares)
        done += STEP
        if done % (STEP << 8) == 0:
            record().write(out)
    record().show()
    record().write(out)


def cost(bundle: Path, repetitions: int, tokens: int, out: Path) -> None:
    """Tokens of an answer in one process, one with checks and the next without, by the clock and by processor time.

    The difference has everything: the check in a row's decryption, the running test, the exact logits of a tied head.
    The median of the differences between neighbours counts. On a quiet machine the clock says what a user waits for, as
    processor time has threads that wait by spinning; beside other work only processor time says something.
    """
    hybrid = HybridFHEModel.load(bundle, device="cpu")
    hybrid.check_answers("smollm2")
    hybrid.set_fhe_mode("execute")
    turns, model = _Turns(hybrid), cast("LanguageModel", hybrid.model)
    prompt = random_prompt(model, 8)
    generate(model, prompt, tokens)  # batches in memory that the process has for the first time
    rows: dict[str, dict[str, list[float]]] = {name: {"token": [], "check": [], "share": []} for name in turns.clocks}
    for _ in range(repetitions):
        hybrid.reserve(rows_full=2 * tokens + 16)
        turns.begin()
        generate(model, prompt, 2 * tokens, turns)
        for name in turns.clocks:
            whole, check = turns.spent(name)
            for part, value in (("token", whole), ("check", check), ("share", 100 * check / whole)):
                rows[name][part].append(value)
    record = Record(benchmark="cost of checked answers, smollm2", parameters={"tokens": tokens})
    for name, own in rows.items():
        record.add(Measurement.of(f"a token, both halves, {name}", own["token"], "ms"))
        record.add(Measurement.of(f"of which checks, {name}", own["check"], "ms"))
        record.add(Measurement.of(f"share of the checks, {name}", own["share"], "%", target="at most 3"))
    record.show()
    record.write(out)
    hybrid.close()


class _Turns:
    """Has every other token of a generation checked, and notes when each is there; called once a token."""

    clocks: ClassVar = {"by the clock": time.perf_counter, "processor time": time.process_time}

    def __init__(self, hybrid: HybridFHEModel) -> None:
        assert hybrid.sides.local is not None and hybrid.sides.router is not None
        self._session, self._router = hybrid.sides.local, hybrid.sides.router
        self._checked = (self._session.checks, self._router.candidates)
        self._times: dict[str, list[float]] = {}

    def begin(self) -> None:
        self._times = {name: [] for name in self.clocks}
        self._session.checks, self._router.candidates = self._checked

    def __call__(self) -> None:
        for name, clock in self.clocks.items():
            self._times[name].append(clock())
        checked = len(self._times["by the clock"]) % 2 == 0
        self._session.checks, self._router.candidates = self._checked if checked else (None, None)

    def spent(self, name: str) -> tuple[float, float]:
        """Milliseconds of a checked token, and of its checks; without the prompt and the first tokens."""
        steps = 1000 * np.diff(self._times[name])[RECORDED:]
        unchecked, checked = steps[: len(steps) // 2 * 2].reshape(-1, 2).T
        return float(np.median(checked)), float(np.median(checked - unchecked))


def cost_on_gpu(name: str, repetitions: int, tokens: int, out: Path) -> None:
    """Answers of two models on the GPU, one of which checks, in turns: launch by launch, and a token as one CUDA graph."""
    models: dict[str, HybridFHEModel] = {}
    for kind in ("checked", "unchecked"):
        loaded = load(name)
        loaded.model.to("cuda")
        models[kind] = hybrid = HybridFHEModel(loaded.model, select_modules(loaded.model, "linear"))
        with quiet():
            hybrid.compile_model(torch.tensor([[1, 2, 3]], device="cuda"), device="cuda")
        release_floats(hybrid.model)
        if kind == "checked":
            hybrid.check_answers(name)
        hybrid.set_fhe_mode("execute")
    about = {"model": loaded.origin, "tokens": tokens}
    record = Record(benchmark="cost of checked answers on a GPU", parameters=about, machine=torch.cuda.get_device_name())
    inputs = torch.arange(1, 9, device="cuda")[None]
    ways: dict[str, dict[str, object]] = {"one graph": STATIC_CACHE, "launch by launch": {}}
    for way, options in ways.items():
        spent: dict[str, list[float]] = {kind: [] for kind in models}
        for repetition in range(1 + repetitions):
            for kind, hybrid in models.items():
                hybrid.reserve(rows_full=2 * tokens)
                done = generate(cast("LanguageModel", hybrid.model), inputs, tokens, settings=options)
                if repetition:
                    spent[kind].append(1000 * median(done.tokens_s[RECORDED:]))
        more = [one - other for one, other in zip(spent["checked"], spent["unchecked"], strict=True)]
        share = [100 * own / whole for own, whole in zip(more, spent["checked"], strict=True)]
        record.add(Measurement.of(f"a token, both halves, {way}", spent["checked"], "ms"))
        record.add(Measurement.of(f"of which checks, {way}", more, "ms"))
        record.add(Measurement.of(f"share of the checks, {way}", share, "%", target="at most 3"))
        record.write(out)
    record.show()
    for hybrid in models.values():
        hybrid.close()


if __name__ == "__main__":
    main()
