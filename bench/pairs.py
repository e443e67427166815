"""Private fine-tuning from end to end: fifty questions that SmolLM2 cannot know, asked before and after.

    python -m bench pairs [--steps 60] [--device auto] [--out bench/results/training-pairs.json]

Every step is a process: ``veil compile --trainable``, ``veil generate`` for what the model says of itself, ``veil finetune``
in mode ``execute`` on ``examples/varrow.jsonl``, then ``veil serve`` and ``veil generate --server --adapter``. An answer
counts as right where it is the example's, word for word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from bench.processes import VEIL, compiled, listening
from bench.record import Measurement, Record

EXAMPLES = Path(__file__).parents[1] / "examples" / "varrow.jsonl"
TOKENS = 24
SHOWN = 5
"""Answers that the record quotes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("bench/results/training-pairs.json"))
    args = parser.parse_args()
    pairs = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    about = {"model": "smollm2", "pairs": len(pairs), "steps": args.steps, "batch": 4, "device": args.device}
    record = Record(benchmark="training, pairs", parameters=about)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = folder / "questions.jsonl"
        questions.write_text("".join(json.dumps({"prompt": pair["question"]}) + "\n" for pair in pairs))
        bundle, adapter = compiled(folder / "bundle", "--trainable"), folder / "adapter"
        device = ("--device", args.device)
        before = answers(questions, "--bundle", bundle, *device)
        start = time.perf_counter()
        trained = tuned(bundle, adapter, args.steps, *device)
        seconds = time.perf_counter() - start
        with listening("serve", bundle / "server", *device) as port:
            after = answers(questions, "--server", f"127.0.0.1:{port}", "--bundle", bundle / "client", "--adapter", adapter)
    for what, texts in (("before", before), ("after, through veil serve", after)):
        right = sum(text.strip() == pair["answer"] for text, pair in zip(texts, pairs, strict=True))
        record.add(Measurement(name=f"right answers {what}", value=right, unit="", target="at least one more after"))
    record.add(Measurement(name="training", value=seconds, unit="s"))
    record.add(Measurement(name="a step", value=trained["seconds_per_step"], unit="s"))
    record.add(Measurement(name="bytes a step", value=trained["bytes_per_step"], unit="B"))
    record.notes += [
        f"{pair['question']}  before: {old.strip()!r}  after: {new.strip()!r}"
        for pair, old, new in list(zip(pairs, before, after, strict=True))[:SHOWN]
    ]
    record.show()
    record.write(args.out)


def answers(questions: Path, *options: str | Path) -> list[str]:
    """What `veil generate --batch` answers to a file of prompts."""
    command = [*VEIL, "generate", "--batch", questions, "--max-new-tokens", str(TOKENS), *options]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return [str(answer["text"]) for answer in map(json.loads, done.stdout.splitlines())]


def tuned(bundle: Path, adapter: Path, steps: int, *options: str) -> dict[str, float]:
    """The record of `veil finetune` on the examples, none kept apart: every question is asked afterwards."""
    settings = ["--steps", str(steps), "--learning-rate", "2e-3", "--tokens", "96", "--validation", "0"]
    command = [*VEIL, "finetune", "--bundle", bundle, "--data", EXAMPLES, "--out", adapter, *settings, "--json", *options]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
