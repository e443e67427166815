"""The memory of a gateway that answers for hours stays level, whatever kind of model it serves."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from situations.small import IDS, SIZES, bert, compiled, kept, llama, model_of, t5
from veil.gateway.app import build_app
from veil.gateway.served import ServedModel
from veil.runtime.modules import linear_modules

KINDS = ["causal", "adapters", "encoder-decoder", "encoder", "mixture", "state space"]
REQUESTS = 125
WARM = 25
ROOM = 24 << 20
"""Bytes that a process's memory may move by in 100 requests without anything being kept."""


def with_adapters() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))


def mixture() -> Any:
    """Two of four experts a token; the client computes the router and asks all."""
    return model_of("MixtralForCausalLM", **SIZES, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)


def state_space() -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
    return model_of("MambaForCausalLM", **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def tokenizer() -> Any:
    words = ["<unk>", "<s>", "</s>", *(f"w{index}" for index in range(61))]
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def resident() -> int:
    """Bytes of this process's memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("make", [llama, with_adapters, t5, bert, mixture, state_space], ids=KINDS)
def test_five_hundred_requests_of_every_kind_leave_memory_level(make: Callable[[], Any]) -> None:
    """125 requests to each kind; pictures are in tests/gateway/test_pictures.py. vllm #31577: an encoder-decoder's grew."""
    model = make()
    sample: Any = {"input_ids": IDS, "decoder_input_ids": IDS} if make is t5 else IDS
    names = [name for name in linear_modules(model) if not name.endswith("dt_proj")]  # whose weight Mamba itself multiplies
    hybrid = compiled(model, names, sample)
    client = TestClient(build_app(ServedModel("tiny", hybrid, tokenizer())), base_url="http://127.0.0.1")
    before = (0, 0, 0)
    for number in range(REQUESTS):
        prompt = f"w{number % 5} w7 w3"
        if make is bert:
            reply = client.post("/v1/embeddings", json={"model": "tiny", "input": prompt})
        else:
            body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
            reply = client.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["data" if make is bert else "choices"]
        if number == WARM:
            before = (*kept(hybrid), resident())
    own, others = kept(hybrid)
    assert own <= before[0] + 2
    assert others <= before[1] + 2
    assert resident() <= before[2] + ROOM
