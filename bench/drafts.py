"""Draft tokens on SmolLM2: the same greedy text on ten prompts, and how many tokens a pass brings when a text is summarised.

    python -m bench drafts [--mode disable|execute] [--out bench/results/drafts.json]

The integer layers in clear (``disable``) make the comparison exact up to float rounding in attention; ``execute`` adds
noise, with which near ties fall either way from run to run. Every pass drafts four tokens, whatever it costs, so that the
counts do not depend on the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.record import Measurement, Record
from bench.trips import REPEATING
from veil.commands.models import compiled
from veil.runtime.pace import Pace
from veil.runtime.speculation import Speculation
from veil.sources.models import load_model
from veil.sources.quiet import quiet

DRAFT_TOKENS, TOKENS = 4, 48
ASKED = "Summarize the following text by repeating its important sentences.\n\n"
NOTE = (
    "Minutes of the meeting. The bridge over the mill stream is closed from Monday. The repair of the bridge takes three "
    "weeks and costs nine thousand crowns. Carts use the ford below the mill until the bridge is open again."
)
HARBOUR = (
    "The harbour office opens at six. Every boat that enters the harbour has to report to the harbour office. Boats longer "
    "than twelve metres pay a fee of forty crowns a night. Boats shorter than twelve metres pay a fee of twenty crowns a "
    "night. The fee is paid at the harbour office."
)
SUMMARIES = (
    REPEATING,
    ASKED + NOTE,
    ASKED + HARBOUR,
)
PROMPTS = (
    *SUMMARIES,
    "What is the capital of France?",
    "Explain in simple words why the sky is blue.",
    "Write a short story about a fox that learns to read.",
    "List the days of the week and the months of the year.",
    "Write a Python function that adds two numbers, and show how to call it.",
    "How do I boil an egg?",
    "Translate to French: The house is small, but the garden is large.",
)


class Fixed(Pace):
    """Always the same number of draft tokens."""

    def draft_tokens(self, ready: int, prepare_s: float) -> int:
        """Four."""
        return DRAFT_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["disable", "execute"], default="disable")
    parser.add_argument("--out", type=Path, default=Path("bench/results/drafts.json"))
    args = parser.parse_args()
    source = load_model("smollm2")
    hybrid = compiled(source, bits=8, modules="linear", fuse_norms="on")
    hybrid.set_fhe_mode(args.mode)
    record = Record(benchmark=f"draft tokens, {args.mode}", parameters={"draft_tokens": DRAFT_TOKENS, "new_tokens": TOKENS})
    same = 0
    assert source.tokenizer is not None
    for prompt in PROMPTS:
        plain, _ = tokens_of(hybrid, source.tokenizer, prompt, speculate=False)
        drafted, passes = tokens_of(hybrid, source.tokenizer, prompt, speculate=True)
        same += plain == drafted
        kind = "summary" if prompt in SUMMARIES else "other"
        name = f"{kind}: {prompt.replace(ASKED, '')[:44]!r}, tokens a pass"
        record.add(Measurement(name=name, value=len(drafted) / passes, unit=""))
        if plain != drafted:
            record.notes.append(f"{prompt[:44]!r} differs: {source.tokenizer.decode(plain)!r}")
    record.add(Measurement(name="prompts with the same text", value=same, unit=f"of {len(PROMPTS)}"))
    record.show()
    record.write(args.out)


def speculating(hybrid: Any) -> Speculation:
    """`HybridFHEModel.speculate` with a fixed number of draft tokens."""
    pace = Fixed(fixed_s=0.0, row_s=1.0, most=DRAFT_TOKENS)
    return Speculation(hybrid.model, "lookup", hybrid.stats, pace, lambda: 1 + DRAFT_TOKENS)


def tokens_of(hybrid: Any, tokenizer: Any, prompt: str, *, speculate: bool) -> tuple[list[int], int]:
    """Greedy tokens and the number of forward passes."""
    turns = [{"role": "user", "content": prompt}]
    chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": TOKENS, "pad_token_id": 0}
    before = hybrid.stats.copy()
    with quiet(), torch.no_grad():
        if speculate:
            with speculating(hybrid) as options:
                output = hybrid.model.generate(**chat, **settings, **options)
        else:
            output = hybrid.model.generate(**chat, **settings)
    made = [int(token) for token in output[0, chat["input_ids"].shape[1] :]]
    return made, len(made) - (hybrid.stats - before).accepted


if __name__ == "__main__":
    main()
