"""Private fine-tuning from end to end: fifty questions that SmolLM2 cannot know, of which some are asked before and after.

    python -m bench pairs [--steps 90] [--asked 10] [--folder FOLDER] [--out bench/results/training-pairs.json]

Every step is a process: ``veil compile --trainable``, ``veil generate`` for what the model says of itself, ``veil finetune``
in mode ``execute`` on ``examples/varrow.jsonl``, then ``veil serve`` and ``veil generate --server --adapter``. An answer
counts as right where it is the example's, word for word. What a ``--folder`` holds of an earlier run is not made again, so
a run that was ended goes on; each step says on standard error when it is over.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench.processes import VEIL, compiled, listening
from bench.record import Measurement, Record

EXAMPLES = Path(__file__).parents[1] / "examples" / "varrow.jsonl"
TOKENS = 24
SHOWN = 5
"""Answers that the record quotes."""
START = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--asked", type=int, default=10, help="questions that are asked before and after")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="where bundle, adapter and answers are kept for a later run")
    parser.add_argument("--out", type=Path, default=Path("bench/results/training-pairs.json"))
    args = parser.parse_args()
    pairs = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    about = {"model": "smollm2", "pairs": len(pairs), "asked": args.asked, "steps": args.steps, "batch": 4}
    record = Record(benchmark="training, pairs", parameters=about | {"device": args.device})
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        asked = pairs[:: max(1, len(pairs) // args.asked)][: args.asked]
        questions = folder / "questions.jsonl"
        questions.write_text("".join(json.dumps({"prompt": pair["question"]}) + "\n" for pair in asked))
        bundle, adapter, device = folder / "bundle", folder / "adapter", ("--device", args.device)
        if not bundle.exists():
            compiled(bundle, "--trainable")
        said("compiled")
        before = kept(folder / "before.json", lambda: answers(questions, "--bundle", bundle, *device))
        trained = kept(folder / "trained.json", lambda: tuned(bundle, adapter, args.steps, *device))
        with listening("serve", bundle / "server", *device) as port:
            said("serving")
            server = ("--server", f"127.0.0.1:{port}", "--bundle", bundle / "client", "--adapter", adapter)
            after = kept(folder / "after.json", lambda: answers(questions, *server))
    pairs = asked
    for what, texts in (("before", before), ("after, through veil serve", after)):
        right = sum(text.strip() == pair["answer"] for text, pair in zip(texts, pairs, strict=True))
        record.add(Measurement(name=f"right answers {what}", value=right, unit="", target="at least one more after"))
    record.add(Measurement(name="training", value=trained["seconds"], unit="s"))
    record.add(Measurement(name="a step", value=trained["seconds_per_step"], unit="s"))
    record.add(Measurement(name="bytes a step", value=trained["bytes_per_step"], unit="B"))
    record.notes += [
        f"{pair['question']}  before: {old.strip()!r}  after: {new.strip()!r}"
        for pair, old, new in list(zip(pairs, before, after, strict=True))[:SHOWN]
    ]
    record.show()
    record.write(args.out)


def said(what: str) -> None:
    """Say that a step is over."""
    print(f"pairs: {what} after {time.perf_counter() - START:.0f} s", file=sys.stderr, flush=True)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What an earlier run left at a path, or what is made now, and left there."""
    if not path.exists():
        made = json.dumps(make())
        path.write_text(made)
    said(path.stem)
    return json.loads(path.read_text())


def answers(questions: Path, *options: str | Path) -> list[str]:
    """What `veil generate --batch` answers to a file of prompts."""
    command = [*VEIL, "generate", "--batch", questions, "--max-new-tokens", str(TOKENS), *options]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return [str(answer["text"]) for answer in map(json.loads, done.stdout.splitlines())]


def tuned(bundle: Path, adapter: Path, steps: int, *options: str) -> dict[str, float]:
    """The record of `veil finetune` on the examples, none kept apart, and its seconds; from a checkpoint on."""
    settings = [
        "--steps",
        str(steps),
        "--learning-rate",
        "2e-3",
        "--rank",
        "16",
        "--targets",
        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "--tokens",
        "96",
        "--validation",
        "0",
        "--save-every",
        "10",
    ]
    if (adapter / "checkpoint").exists():
        settings.append("--resume")
    command = [*VEIL, "finetune", "--bundle", bundle, "--data", EXAMPLES, "--out", adapter, *settings, "--json", *options]
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found | {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
