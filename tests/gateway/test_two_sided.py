"""Encoder-decoder models: every answer, the second as the first; penalties and limits count from the decoder's beginning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

BODY = {"model": "tiny", "prompt": "w1 w2 w3", "temperature": 0, "max_tokens": 6, "ignore_eos": True}


def make_t5() -> Any:
    """A T5 of one layer with random but fixed weights."""
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=2,
        eos_token_id=2,
        pad_token_id=2,
        initializer_factor=3.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


def make_bart() -> Any:
    """A BART of one layer with random but fixed weights; it wants beams, an end by force, and no triple twice."""
    config = BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=24,
        decoder_start_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        init_std=0.4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config).eval()
    model.generation_config.update(num_beams=4, no_repeat_ngram_size=3, forced_eos_token_id=2, forced_bos_token_id=None)
    return model


def example(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 13).unsqueeze(0)
    return {"input_ids": ids, "decoder_input_ids": ids}


@pytest.fixture(scope="module", params=["t5", "bart"])
def running(request: Any, tiny_tokenizer: Any, listen: Any) -> Iterator[Any]:
    from veil.gateway.served import ServedModel
    from veil.hybrid.model import HybridFHEModel
    from veil.params import Params
    from veil.runtime.modules import select_modules

    model = make_t5() if request.param == "t5" else make_bart()
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    hybrid.compile_model(example(model), params=Params.insecure_tiny(), device="cpu")
    hybrid.set_fhe_mode("disable")
    with listen(ServedModel("tiny", hybrid, tiny_tokenizer)) as made:
        yield made
    hybrid.close()


def expected(served: Any, prompt: str, count: int, **options: Any) -> list[int]:
    """Greedy tokens of the integer layers, by a loop of its own, ends never taken."""
    ids = torch.tensor([served.tokenizer(prompt)["input_ids"]])
    made = [2]
    before = served.hybrid.fhe_mode
    served.hybrid.set_fhe_mode("disable")
    try:
        while len(made) <= count:
            output = served.net(input_ids=ids, decoder_input_ids=torch.tensor([made]), use_cache=False)
            logits = output.logits[0, -1].clone()
            for token in set(made[1:]):
                logits[token] -= options.get("presence_penalty", 0) + options.get("frequency_penalty", 0) * made[1:].count(
                    token
                )
            logits[2] = -torch.inf
            made.append(int(logits.argmax()))
    finally:
        served.hybrid.set_fhe_mode(before)
    return made[1:]


def test_every_request_is_answered_not_the_first_alone(running: Any) -> None:
    for prompt in ("w1 w2 w3", "w9 w8", "w1 w2 w3"):
        reply = httpx.post(f"{running.url}/v1/completions", json=BODY | {"prompt": prompt}, timeout=30).json()
        (choice,) = reply["choices"]
        words = running.gateway.served.tokenizer.decode(
            expected(running.gateway.served, prompt, 6), skip_special_tokens=True
        )
        assert choice["text"] == words
        assert (choice["finish_reason"], reply["usage"]["completion_tokens"]) == ("length", 6)


def test_after_an_answer_that_was_broken_off_the_next_is_whole(running: Any) -> None:
    url = f"{running.url}/v1/completions"
    with running.held_until_left(after=90), pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=BODY | {"max_tokens": 20}, timeout=0.3)
    assert running.idle()
    (choice,) = httpx.post(url, json=BODY, timeout=30).json()["choices"]
    assert choice["text"]
    stream = httpx.post(url, json=BODY | {"stream": True}, timeout=30).text
    assert stream.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in stream


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties_count_the_answers_tokens(running: Any, name: str) -> None:
    reply = httpx.post(f"{running.url}/v1/completions", json=BODY | {name: 2}, timeout=30).json()
    served = running.gateway.served
    words = served.tokenizer.decode(expected(served, "w1 w2 w3", 6, **{name: 2}), skip_special_tokens=True)
    assert reply["choices"][0]["text"] == words


def test_the_prompts_length_takes_no_room_from_the_answer(running: Any) -> None:
    served = running.gateway.served
    if served.context_length > 1000:
        assert served.room(5) > 1000
        return
    body = BODY | {"prompt": "w1 " * 24, "max_tokens": 100}
    reply = httpx.post(f"{running.url}/v1/completions", json=body, timeout=30).json()
    assert reply["usage"]["prompt_tokens"] == 24 and reply["usage"]["completion_tokens"] == 23
    too_long = httpx.post(f"{running.url}/v1/completions", json=BODY | {"prompt": "w1 " * 25}, timeout=30)
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
