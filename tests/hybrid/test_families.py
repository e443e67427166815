"""Every family of docs/families.md: each mode, prompt and cached decoding, a bundle on disk, and a remote embedding.

The parameters are the real ones. Seeds are chosen so that the best two logits of every greedy step are at least 20
deviations of the noise apart (checked), so tokens have to be equal and no tie decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comparing import decibels
from family_models import END, FAMILIES, PAGE, START, TOKENS, Family, table
from veil import HybridFHEModel, linear_modules
from veil.bundle.terms import Terms
from veil.params import Params, Spec

PROMPT = torch.tensor([[5, 9, 33, 17, 60, 41]])
TINY = Params.insecure_tiny(signal_db=60.0)
FINE = Params.from_spec(Spec(signal_db=66.0))  # the real set with more bits on the wire, so that no near tie decides
WEAK = Terms(no_cryptography=True)


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    return inputs | ({"decoder_input_ids": PROMPT.flip(1)} if model.config.is_encoder_decoder else {})


def forward(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs_of(model))[0]
    return output


def greedy(model: Any) -> tuple[list[int], torch.Tensor]:
    ids, mask = PROMPT, torch.ones_like(PROMPT)
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    out = model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **settings)
    return out.sequences[0].tolist(), torch.stack(out.logits)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family, tmp_path: Path) -> None:
    hybrid = HybridFHEModel(family.make(), linear_modules(family.make()))
    hybrid.compile_model(inputs_of(hybrid.model), params=FINE)
    assert hybrid.params.security_bits >= 128
    exact = forward(family.make())
    logits = {mode: forward_in(hybrid, mode) for mode in ("torch", "disable", "simulate", "execute")}
    assert torch.equal(logits["torch"], exact)
    assert decibels(exact, logits["disable"]) > 18
    assert decibels(logits["disable"], logits["simulate"]) > 30
    assert decibels(logits["disable"], logits["execute"]) > 30
    if family.task == "generate":
        hybrid.set_fhe_mode("disable")
        clear, scores = greedy(hybrid.model)
        hybrid.set_fhe_mode("execute")
        tokens, encrypted = greedy(hybrid.model)
        best = scores.topk(2).values
        assert (best[..., 0] - best[..., 1]).min() > 20 * (encrypted - scores).std()
        assert tokens == clear
    hybrid.save(tmp_path / "bundle")
    opened = HybridFHEModel.load(tmp_path / "bundle", terms=WEAK)
    torch.testing.assert_close(forward(opened.model), logits["disable"], atol=1e-5, rtol=1e-5)


def forward_in(hybrid: HybridFHEModel, mode: str) -> torch.Tensor:
    """One pass in a mode; every group must have been asked for, or a layer that should be remote was not."""
    asked: set[int] = set()
    if mode != "torch":
        router = hybrid.sides.router
        assert router is not None
        router.observer = lambda group, x, outputs: asked.add(group)
    hybrid.set_fhe_mode(mode)
    output = forward(hybrid.model)
    if mode != "torch":
        assert asked == set(range(len(hybrid.manifest.groups)))
    return output


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_with_a_remote_embedding(family: Family) -> None:
    """Neither the embedding's table nor the head's weight stays with the client, and a scaled embedding stays scaled."""
    model = family.make()
    names = linear_modules(model, include_embedding=True)
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and name in names}
    assert any(module is model.get_input_embeddings() for name, module in model.named_modules() if name in tables)
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(inputs_of(model), params=TINY)
    logits = {mode: forward_in(hybrid, mode) for mode in ("torch", "disable", "execute")}
    assert decibels(logits["torch"], logits["disable"]) > 18
    assert decibels(logits["disable"], logits["execute"]) > 25


def test_the_page_shows_this_table() -> None:
    page = PAGE.read_text()
    inside = page[page.index(START) + len(START) : page.index(END)]
    assert inside.strip() == table().strip(), "docs/families.md is stale; run python tests/family_models.py"
