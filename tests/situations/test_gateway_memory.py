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

from situations.small import IDS, bert, compiled, kept, llama, t5
from veil.gateway.app import build_app
from veil.gateway.served import ServedModel
from veil.runtime.modules import linear_modules

REQUESTS = 125
WARM = 25
ROOM = 24 << 20
"""Bytes that a process's memory may move by in 100 requests without anything being kept."""


def with_adapters() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))


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
@pytest.mark.parametrize("make", [llama, with_adapters, t5, bert], ids=["causal", "adapters", "encoder-decoder", "encoder"])
def test_five_hundred_requests_of_every_kind_leave_memory_level(make: Callable[[], Any]) -> None:
    """125 requests to each of four kinds. vllm #31577: an encoder-decoder's memory grew with every request."""
    model = make()
    sample: Any = {"input_ids": IDS, "decoder_input_ids": IDS} if make is t5 else IDS
    hybrid = compiled(model, linear_modules(model), sample)
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
