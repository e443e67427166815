"""The gradient of a head that is tied to an embedding of the client's: computed here, exact, never asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.errors import BundleError
from veil.params import Params
from veil.runtime.tied_head import tied_head

WEAK = Terms(no_cryptography=True)
IDS = torch.tensor([[1, 7, 9, 30, 41, 12, 3, 5, 22], [1, 8, 50, 31, 11, 60, 6, 15, 33]])


def head_gradient(model: Any, wanted: torch.Tensor) -> torch.Tensor:
    """What goes back through the head for gradients by its logits [1, R, vocabulary]."""
    x = torch.linspace(-1, 1, wanted.shape[1] * 32).reshape(1, -1, 32).requires_grad_()
    model.lm_head(x).backward(wanted)
    assert x.grad is not None
    return x.grad


def test_the_gradient_of_a_tied_head_is_exact_and_asks_for_nothing(twins: Any, monkeypatch: Any) -> None:
    pair = twins(name="gpt2")
    manifest, hybrid = pair.hybrid.manifest, pair.hybrid
    heads = [index for index, group in enumerate(manifest.groups) if group.segment == "head"]
    assert len(heads) == 1 and heads[0] not in manifest.back and len(manifest.back) == len(manifest.forward) - 1
    assert hybrid.is_trainable
    hybrid.set_fhe_mode("execute")
    wanted = torch.randn(1, 3, pair.model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    table = pair.model.transformer.wte.weight.detach()
    trips = hybrid.stats.trips
    torch.testing.assert_close(head_gradient(hybrid.model, wanted), wanted @ table)
    assert hybrid.stats.trips == trips + 1, "the logits, and no gradient"
    pair.gradients(pair.model)
    assert hybrid.stats.trips == trips + 1 + len(manifest.groups)
    hybrid.close()


def test_a_tied_head_trains_after_it_was_saved(twins: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pair = twins(name="gpt2")
    expected = pair.gradients(pair.model)
    pair.hybrid.save(tmp_path / "b", tokenizer=tiny_tokenizer)
    opened = HybridFHEModel.load(tmp_path / "b", device="cpu", terms=WEAK)
    for own, parameter in opened.model.named_parameters():
        parameter.requires_grad_(own in expected)
    found = pair.gradients(opened.model)
    assert set(found) == set(expected) and all(torch.equal(found[own], expected[own]) for own in found)


def test_an_embedding_that_trains_leaves_the_compiled_head_as_it_is(twins: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pair = twins(name="gpt2")
    pair.hybrid.save(tmp_path / "b", tokenizer=tiny_tokenizer)
    model: Any = HybridFHEModel.load(tmp_path / "b", device="cpu", terms=WEAK).model
    table = model.transformer.wte.weight.requires_grad_()
    wanted = torch.ones(1, 2, len(table))
    before = head_gradient(model, wanted)
    with torch.no_grad():
        table.mul_(3.0)  # as an optimizer's step does
    torch.testing.assert_close(head_gradient(model, wanted), before)


def test_heads_that_are_not_tied_or_alone_or_whose_embedding_is_remote_are_asked(new_model: Any) -> None:
    for name, remote in (
        ("llama", None),
        ("gpt2", ["lm_head"]),
        ("gpt2", ["lm_head", "transformer.wte", "transformer.h.0.mlp.c_fc"]),
    ):
        model = new_model(name)
        names = remote or ["lm_head", "model.layers.0.mlp.down_proj"]
        hybrid = HybridFHEModel(model, names)
        hybrid.compile_model(IDS, device="cpu", params=Params.insecure_tiny(), trainable=True)
        head = next(index for index, group in enumerate(hybrid.manifest.groups) if group.segment == "head")
        assert hybrid.manifest.groups[hybrid.manifest.back[head]].words == 2


def test_a_bundle_whose_embedding_is_not_here_is_refused(twins: Any) -> None:
    hybrid = twins(name="gpt2").hybrid
    assert tied_head(hybrid.model, hybrid.manifest) is not None
    hybrid.model.config.tie_word_embeddings = False
    with pytest.raises(BundleError, match="from an embedding that its model lacks"):
        tied_head(hybrid.model, hybrid.manifest)
