"""Every adapter's gradient through encrypted layers against the float model's: cosines, and what a second word costs.

    python -m bench gradients [--device cuda] [--modes disable,execute] [--words 0,1,2]

SmolLM2 with LoRA r = 8 on q and v, B drawn at random (at zero A would have no gradient), the loss of 4 x 64 tokens of prose.
``--words``: 2 is how `compile_model(trainable=True)` rounds weights. For comparison, 1 has no second words, qkv has them in
queries, keys and values alone, and 0 has none and sends the head's gradient to the server too.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.record import Measurement, Record
from bench.training import LORA, RESULTS, compiled, machine_of, prose
from veil.bundle.manifest import Group
from veil.compile import compiler, words
from veil.compile.sample import sample_tokens
from veil.sources.models import load_model
from veil.sources.quiet import quiet
from veil.training.adapters import add_lora

B_DEVIATION = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--modes", default="disable,execute")
    parser.add_argument("--words", default="0,1,2")
    parser.add_argument("--out", type=Path, default=RESULTS / "training-gradients.json")
    args = parser.parse_args()
    about = {"model": "smollm2", "lora": "r 8, q and v", "batch": "4 x 64", "device": args.device, "B": B_DEVIATION}
    record = Record(benchmark="training, gradients", parameters=about, machine=machine_of(args.device))
    source = load_model("smollm2")
    source.model.to(args.device)
    data = prose(source, 64)
    ids = torch.tensor([example.ids for example in (*data.validation, *data.training)][:4], device=args.device)
    expected = gradients(adapted(copy.deepcopy(source.model)), ids)
    for count in args.words.split(","):
        choose(count)
        hybrid = compiled(copy.deepcopy(source.model), sample_tokens(source), args.device)
        record.add(Measurement(name=f"{count}: slots", value=hybrid.manifest.total_slots, unit=""))
        record.add(Measurement(name=f"{count}: hint, server", value=hybrid.hint_bytes, unit="B"))
        model = adapted(hybrid.model)
        for mode in args.modes.split(","):
            hybrid.set_fhe_mode(mode)
            before = hybrid.stats.copy()
            compare(record, f"{count}: {mode}", expected, gradients(model, ids))
            spent = hybrid.stats - before
            if spent.trips:
                online = spent.bytes_up_online + spent.bytes_down_online
                record.add(Measurement(name=f"{count}: {mode}, bytes online", value=online, unit="B"))
            record.write(args.out)
        hybrid.close()
    record.show()


def choose(count: str) -> None:
    """Have weights rounded with so many words."""
    compiler._head_here = _HEAD_HERE if count != "0" else lambda *_: None
    if count in ("0", "1"):
        words.forward_words = words.back_words = lambda group: 1
    elif count == "qkv":
        words.forward_words = lambda group: 2 if _is_attention(group) else 1
        words.back_words = _BACK
    else:
        words.forward_words, words.back_words = _FORWARD, _BACK


_FORWARD, _BACK, _HEAD_HERE = words.forward_words, words.back_words, compiler._head_here


def _is_attention(group: Group) -> bool:
    return any("q_proj" in layer.name for layer in group.layers)


def adapted(model: Any) -> Any:
    """The model with an adapter whose B is random, the same one every time."""
    torch.manual_seed(1)
    with quiet():
        whole = add_lora(model, LORA)
    draw = torch.Generator().manual_seed(3)
    for name, parameter in whole.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(B_DEVIATION * torch.randn(parameter.shape, generator=draw))
    return whole


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each adapter's gradient of the loss of predicting the tokens."""
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad.detach().double().cpu().flatten() for name, parameter in own.items()}


def compare(record: Record, name: str, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Add the cosines of two sets of gradients: of each tensor, and of all together."""
    cosines = [float(torch.nn.functional.cosine_similarity(expected[own], found[own], 0)) for own in expected]
    record.add(Measurement.of(f"{name}, cosine", cosines, "", target="≥ 0.999 in the median, ≥ 0.99 each"))
    ours, theirs = torch.cat(list(found.values())), torch.cat(list(expected.values()))
    whole = float(torch.nn.functional.cosine_similarity(ours, theirs, 0))
    record.add(Measurement(name=f"{name}, cosine of all", value=whole, unit=""))
    below = int(np.sum(np.array(cosines) < 0.99))
    record.add(Measurement(name=f"{name}, tensors below 0.99", value=below, unit=f"of {len(cosines)}"))
    print(f"{name}: median {np.median(cosines):.5f}, least {min(cosines):.5f}", flush=True)


if __name__ == "__main__":
    main()
