"""A model without weights: its parameters take no memory, and nothing was computed for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from veil.runtime.empty_model import model_without_weights

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_weights_are_nowhere_and_buffers_have_values() -> None:
    config = LlamaConfig(**SIZES, vocab_size=20, pad_token_id=0)
    model: Any = model_without_weights(LlamaForCausalLM, config)
    assert model.lm_head.weight.is_meta and model.model.embed_tokens.weight.is_meta
    whole: Any = LlamaForCausalLM(config)
    assert torch.equal(model.model.rotary_emb.inv_freq, whole.model.rotary_emb.inv_freq)
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_another_family() -> None:
    model: Any = model_without_weights(GPT2LMHeadModel, GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    assert model.transformer.h[0].attn.c_attn.weight.is_meta


class Mixed(nn.Module):
    """A model that computes with what has values and what has none while it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3) + torch.empty(3))

    @classmethod
    def _from_config(cls, config: object) -> Mixed:
        return cls()


def test_a_model_that_mixes_both_is_made_as_ever() -> None:
    made: Any = model_without_weights(Mixed, PreTrainedConfig())  # type: ignore[arg-type]
    assert made.weight.is_meta


class Endless(nn.Module):
    """A model of somebody else's configuration: it asks for more memory than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(1 << 50))
        self.register_buffer("zeros", torch.zeros(1 << 30, 1 << 20))
        self.register_buffer("named", torch.ones(size=(1 << 40,)))
        self.register_buffer("few", torch.full((2, 3), 1.5))
        self.register_buffer("between", torch.arange(2, 8, 2))

    @classmethod
    def _from_config(cls, config: object) -> Endless:
        return cls()


def test_what_a_configuration_asks_for_takes_no_memory() -> None:
    made: Any = model_without_weights(Endless, PreTrainedConfig())  # type: ignore[arg-type]
    assert made.places.is_meta and made.zeros.is_meta and made.named.is_meta
    assert made.few.tolist() == [[1.5] * 3] * 2 and made.between.tolist() == [2, 4, 6]
