"""Seconds a token over a network: plain, with fused norms, and with draft tokens as well, on SmolLM2 and GPT-2's shapes.

    python -m bench trips smollm2 --mbit 1000 --out bench/results/trips-smollm2-1000.json

A server in a process of its own answers over loopback. Each round trip is held back as the link would hold it: it takes a
round-trip time and its bytes at the given bandwidth longer. ``--bundles FOLDER`` keeps the compiled bundles between runs.
A token is what the clock says after the first one; rows that a generation needs beyond those ready are made meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from bench.processes import listening
from bench.record import Measurement, Record
from veil import HybridFHEModel
from veil.client.session import OfflineRows
from veil.client.stats import Stats
from veil.commands.models import compiled
from veil.network.link import Link
from veil.runtime.pace import Pace
from veil.runtime.speculation import Speculation, SpeculationOptions
from veil.sources.models import Source, load_model
from veil.sources.quiet import quiet

RTTS_MS = (0, 5, 20, 50)
ROW_S, MOST_DRAFT_TOKENS = 0.05, 16
REPEATING = (
    "Summarize the following letter by repeating its important sentences.\n\n"
    "Dear Anna, the train leaves Lisbon at half past seven and arrives in Porto at eleven. Please bring the blue folder "
    "with the maps. The blue folder is on the shelf beside the window. We meet at the north door of the station."
)
FRESH = "Write a short story about a fox that learns to read."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "gpt2"])
    parser.add_argument("--mbit", type=float, default=1000)
    parser.add_argument("--rtt-ms", type=float, nargs="*", default=list(RTTS_MS))
    parser.add_argument(
        "--tokens", type=int, default=3, help="tokens without draft tokens; with them 12 times as many, 4 if fresh"
    )
    parser.add_argument("--bundles", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = args.bundles or Path(tempfile.mkdtemp())
    record = Record(benchmark=f"trips, {args.model}", parameters={"mbit_per_s": args.mbit, "tokens": args.tokens})
    for variant in ("plain", "fused"):
        path = folder / f"{args.model}-{variant}"
        if not path.exists():
            source = load_model("smollm2") if args.model == "smollm2" else gpt2()
            compiled(source, bits=8, modules="linear", fuse_norms="on" if variant == "fused" else "off").save(
                path, tokenizer=source.tokenizer
            )
        with listening("serve", path / "server") as port:
            hybrid = HybridFHEModel.connect(f"127.0.0.1:{port}", path, offline_rows=OfflineRows(tokens=48, prompt_rows=0))
            measure(hybrid, variant, args, record)
            hybrid.close()
    record.show()
    record.write(args.out or Path(f"bench/results/trips-{args.model}-{args.mbit:g}.json"))


def gpt2() -> Source:
    """GPT-2's shapes with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return Source(name="gpt2", model=GPT2LMHeadModel(GPT2Config()).eval(), tokenizer=None, origin="random weights")


class HeldBack:
    """Called before each round trip: waits as long as one takes on the link, and as the bytes of the one before take."""

    def __init__(self, link: Link, stats: Stats) -> None:
        self._link = link
        self._stats = stats
        self._moved = self._online()

    def __call__(self) -> None:
        before, self._moved = self._moved, self._online()
        time.sleep(self._link.rtt_s + self._link.transfer_s(self._moved - before))

    def _online(self) -> int:
        return self._stats.bytes_up_online + self._stats.bytes_down_online


def prompts(hybrid: HybridFHEModel) -> dict[str, torch.Tensor]:
    """A text whose continuation repeats it, and one whose does not."""
    if hybrid.tokenizer is None:
        cycle = torch.randint(0, 50257, (1, 12), generator=torch.Generator().manual_seed(1))
        return {"repeating": cycle.repeat(1, 4), "fresh": torch.randint(0, 50257, (1, 16))}
    texts = {"repeating": REPEATING, "fresh": FRESH}
    return {
        name: hybrid.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        for name, text in texts.items()
    }


def measure(hybrid: HybridFHEModel, variant: str, args: Any, record: Record) -> None:
    """Every round-trip time, without draft tokens and, for the fused bundle, with them on both texts."""
    trips = len(hybrid.manifest.groups)
    record.add(Measurement(name=f"{variant}, round trips a pass", value=trips, unit=""))
    texts = prompts(hybrid)
    generation(hybrid, texts["fresh"], 2)
    for rtt_ms in args.rtt_ms:
        link = Link(rtt_s=rtt_ms / 1000, bytes_per_s=args.mbit * 1e6 / 8)
        seconds, _ = generation(hybrid, texts["fresh"], args.tokens, link)
        record.add(Measurement(name=f"{variant}, {rtt_ms:g} ms, a token", value=seconds, unit="s"))
        if variant != "fused":
            continue
        for text, prompt in texts.items():
            count = args.tokens * (12 if text == "repeating" else 4)
            seconds, part = generation(hybrid, prompt, count, link, speculate=True)
            record.add(
                Measurement(name=f"fused and draft tokens, {text} text, {rtt_ms:g} ms, a token", value=seconds, unit="s")
            )
            passes = part.trips / trips
            record.notes.append(
                f"{rtt_ms:g} ms, {text}: {part.accepted} of {part.drafted} draft tokens accepted in {passes:.0f} passes, "
                f"{(1 + count) / passes:.2f} tokens a pass, waited {part.seconds['wait']:.2f} s for rows"
            )


class Clock:
    """A streamer that keeps the time and number of tokens."""

    def __init__(self) -> None:
        self.times: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        """Nothing is held back."""


def generation(
    hybrid: HybridFHEModel, prompt: torch.Tensor, tokens: int, link: Link | None = None, *, speculate: bool = False
) -> tuple[float, Any]:
    """Seconds a token after the first pass, and the counters of all of it."""
    hybrid.reserve(rows_body=prompt.shape[1] - 1, rows_full=1 + tokens)
    before, clock = hybrid.stats.copy(), Clock()
    hybrid.cancel_check = HeldBack(link, hybrid.stats) if link else None
    model: Any = hybrid.model
    speculation: AbstractContextManager[SpeculationOptions] = (
        speculating(hybrid, link) if speculate and link else nullcontext(SpeculationOptions())
    )
    with quiet(), torch.no_grad(), speculation as options:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=1 + tokens, streamer=clock,
            min_new_tokens=1 + tokens, pad_token_id=0, **options,
        )  # fmt: skip
    hybrid.cancel_check = None
    first, last = clock.times[1], clock.times[-1]
    made = sum(count for _, count in clock.times[2:])
    return (last[0] - first[0]) / max(1, made), hybrid.stats - before


def speculating(hybrid: HybridFHEModel, link: Link) -> Speculation:
    """`HybridFHEModel.speculate` for this link instead of the loopback interface that it would measure."""
    pace = Pace(fixed_s=len(hybrid.manifest.groups) * link.rtt_s, row_s=ROW_S, most=MOST_DRAFT_TOKENS)
    return Speculation(hybrid.model, "lookup", hybrid.stats, pace, lambda: hybrid.rows_ready.tokens)


if __name__ == "__main__":
    main()
