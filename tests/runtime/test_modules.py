"""Selection of the modules that become remote."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from veil.runtime.modules import linear_modules, select_modules


def test_linear_takes_every_linear_layer_and_the_head(tiny_llama: LlamaForCausalLM) -> None:
    names = select_modules(tiny_llama, "linear")
    expected = [name for name, module in tiny_llama.named_modules() if isinstance(module, nn.Linear)]
    assert names == expected
    assert len(names) == 2 * 7 + 1
    assert names[-1] == "lm_head"


def test_linear_takes_conv1d(tiny_gpt2: GPT2LMHeadModel) -> None:
    names = select_modules(tiny_gpt2, "linear")
    assert len(names) == 2 * 4 + 1
    assert {"transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj", "lm_head"} <= set(names)


def test_embedding_is_the_token_embedding_only(tiny_llama: LlamaForCausalLM, tiny_gpt2: GPT2LMHeadModel) -> None:
    llama = select_modules(tiny_llama, "linear+embedding")
    assert set(llama) - set(select_modules(tiny_llama, "linear")) == {"model.embed_tokens"}
    # GPT-2's two embedding tables have the same number of rows here, so only the kind of table tells them apart.
    assert tiny_gpt2.transformer.wte.num_embeddings == tiny_gpt2.transformer.wpe.num_embeddings
    gpt2 = select_modules(tiny_gpt2, "linear+embedding")
    assert set(gpt2) - set(select_modules(tiny_gpt2, "linear")) == {"transformer.wte"}


def test_embedding_of_a_plain_module() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(9, 4), "positions": nn.Embedding(5, 4), "out": nn.Linear(4, 9)})
    assert select_modules(model, "linear+embedding") == ["tokens", "out"]


def test_expression_matches_whole_names_in_model_order(tiny_llama: LlamaForCausalLM) -> None:
    names = select_modules(tiny_llama, r"lm_head|model\.layers\.1\.mlp\..*")
    prefix = "model.layers.1.mlp."
    assert names == [prefix + "gate_proj", prefix + "up_proj", prefix + "down_proj", "lm_head"]
    with pytest.raises(ValueError, match="no module's name matches"):
        select_modules(tiny_llama, "head")


def test_expression_may_name_any_supported_kind(tiny_gpt2: GPT2LMHeadModel) -> None:
    assert select_modules(tiny_gpt2, r"transformer\.w.e") == ["transformer.wte", "transformer.wpe"]


def test_a_name_that_matches_nothing_gets_the_nearest(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="nearest names are lm_head"):
        select_modules(tiny_llama, "lmhead")


def test_a_module_of_another_kind_is_named(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"cannot be remote, such as model\.norm \(LlamaRMSNorm\)"):
        select_modules(tiny_llama, r"model\.norm")


def test_a_broken_expression_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        select_modules(tiny_llama, "(linear")


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no module"):
        select_modules(nn.Sequential(nn.ReLU()), "linear")


def test_a_shared_module_is_listed_once() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert select_modules(model, "linear") == ["0"]
    assert model(torch.zeros(1, 3)).shape == (1, 3)


def test_linear_modules_with_and_without_head_and_embedding(tiny_llama: LlamaForCausalLM) -> None:
    names = linear_modules(tiny_llama)
    assert names == select_modules(tiny_llama, "linear")
    assert linear_modules(tiny_llama, include_head=False) == [name for name in names if name != "lm_head"]
    both = linear_modules(tiny_llama, include_embedding=True)
    assert both == select_modules(tiny_llama, "linear+embedding") == ["model.embed_tokens", *names]
    assert linear_modules(tiny_llama, include_head=False, include_embedding=True) == both[:-1]
