"""What a checkpoint says of generation: its tokens' roles and its taste are obeyed, the rest never reaches ``generate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from veil.gateway.requests import USUAL_TEMPERATURE, sampling_of

BODY = {"model": "tiny", "prompt": "w23 w6 w7", "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def plain_text(serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any) -> str:
    with asked(serve_model, listen, new_model, tiny_tokenizer, {}) as reply:
        return str(reply.json()["choices"][0]["text"])


@contextmanager
def asked(serve_model: Any, listen: Any, new_model: Any, tokenizer: Any, said: dict[str, Any], **body: Any) -> Iterator[Any]:
    """The gateway's answer with a checkpoint that says so."""
    model = new_model("llama")
    for name, value in said.items():
        setattr(model.generation_config, name, value)
    served = serve_model(model, tokenizer, mode="disable")
    with listen(served) as running:
        yield httpx.post(f"{running.url}/v1/completions", json=BODY | body, timeout=30)
    served.hybrid.close()


@pytest.mark.parametrize(
    "said",
    [
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_return_sequences": 3, "num_beams": 3, "length_penalty": 5.0, "early_stopping": True},
        {"stop_strings": ["w"]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
        {"dola_layers": "high"},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 3.0},
        {"sequence_bias": [[[5], -50.0]], "bad_words_ids": [[58], [63]]},
        {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 3.0},
        {"exponential_decay_length_penalty": [1, 100.0], "forced_eos_token_id": 2},
        {"min_length": 50, "min_new_tokens": 50, "max_length": 5, "max_time": 1e-9},
        {"token_healing": True},
        {"watermarking_config": {"bias": 20.0}},
        {"output_scores": True, "output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": False},
        {"use_cache": False, "renormalize_logits": True, "remove_invalid_values": True},
        {"compile_config": {"mode": "max-autotune"}, "prefill_chunk_size": 2},
        {"a_field_of_its_own": 5},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_would_be_another_generation_is_not_obeyed(
    serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any, plain_text: str, said: dict[str, Any]
) -> None:
    with asked(serve_model, listen, new_model, tiny_tokenizer, said) as reply:
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["text"] == plain_text


def test_tokens_that_it_suppresses_never_come_and_their_logprobs_are_json(
    serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any, plain_text: str
) -> None:
    first = tiny_tokenizer(plain_text)["input_ids"][0]
    said = {"suppress_tokens": [first], "begin_suppress_tokens": [5]}
    for stream in (False, True):
        options = {"logprobs": 20, "logit_bias": {str(first): 100}, "stream": stream, "max_tokens": 2}
        with asked(serve_model, listen, new_model, tiny_tokenizer, said, **options) as reply:
            assert "Infinity" not in reply.text and "NaN" not in reply.text
            assert f'"{tiny_tokenizer.decode([first])}"' not in reply.text.replace(" ", "")


def test_a_token_that_it_forces_is_certain(serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any) -> None:
    with asked(serve_model, listen, new_model, tiny_tokenizer, {"forced_bos_token_id": 9}, logprobs=3, prompt=[7]) as reply:
        logs = reply.json()["choices"][0]["logprobs"]
        assert logs["tokens"][0].strip() == "w4" and logs["token_logprobs"][0] == 0
        assert sorted(logs["top_logprobs"][0].values()) == [-9999, -9999, 0]


def test_its_taste_counts_where_it_samples(serve_model: Any, new_model: Any, tiny_tokenizer: Any) -> None:
    from veil.gateway.incoming import CompletionRequest

    def sampling(said: dict[str, Any], **body: Any) -> Any:
        model = new_model("llama")
        for name, value in said.items():
            setattr(model.generation_config, name, value)
        served = serve_model(model, tiny_tokenizer, mode="disable")
        try:
            return sampling_of(CompletionRequest(model="tiny", prompt="w1", **body), served, 2048)
        finally:
            served.hybrid.close()

    silent = sampling({})
    assert (silent.temperature, silent.top_p, silent.top_k, silent.min_p) == (USUAL_TEMPERATURE, 1, 0, 0) == (0.3, 1, 0, 0)
    greedy = sampling({"do_sample": False, "temperature": 0.9})
    assert greedy.temperature == 0.3, "a temperature counts where the checkpoint samples"
    said = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
    own = sampling(said)
    assert (own.temperature, own.top_p, own.top_k, own.min_p, own.repetition_penalty) == (0.7, 0.8, 20, 0.1, 1.05)
    mine = sampling(said, temperature=0, top_p=1, top_k=-1, min_p=0, repetition_penalty=1)
    assert (mine.temperature, mine.top_p, mine.top_k, mine.min_p, mine.repetition_penalty) == (0, 1, 0, 0, 1)
    odd = sampling({"do_sample": True, "temperature": float("nan"), "top_p": 7, "top_k": "many"})
    assert (odd.temperature, odd.top_p, odd.top_k) == (0.3, 1, 0)


def test_an_answer_has_a_limit_where_nothing_else_bounds_it(
    serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any
) -> None:
    from veil.gateway.app import Settings

    model = new_model("llama")
    served = serve_model(model, tiny_tokenizer, mode="disable")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "ignore_eos": True}
    with listen(served, settings=Settings(answer_tokens=7)) as running:
        url = f"{running.url}/v1/chat/completions"
        assert httpx.post(url, json=body).json()["usage"]["completion_tokens"] == 7
        assert httpx.post(url, json=body | {"max_tokens": 9}).json()["usage"]["completion_tokens"] == 9
    served.hybrid.close()


def test_models_that_take_no_text_are_refused_by_what_they_take(tiny_tokenizer: Any) -> None:
    from types import SimpleNamespace

    from veil.errors import ModelSourceError
    from veil.gateway.served import ServedModel

    net = SimpleNamespace(can_generate=lambda: True, main_input_name="input_features", config=SimpleNamespace())
    hybrid: Any = SimpleNamespace(model=net)
    with pytest.raises(ModelSourceError, match="takes input_features, not text"):
        ServedModel("whisper", hybrid, tiny_tokenizer)


def test_the_command_line_does_not_obey_it_either(new_model: Any) -> None:
    from types import SimpleNamespace

    from veil.commands.generate import generation_config

    model = new_model("llama")
    for name, value in {"penalty_alpha": 0.6, "stop_strings": ["w"], "num_beams": 4, "repetition_penalty": 9.0}.items():
        setattr(model.generation_config, name, value)
    request: Any = SimpleNamespace(max_new_tokens=5, temperature=0, top_p=1)
    config = generation_config(request, model)
    merged, _ = model._prepare_generation_config(config)
    assert (merged.penalty_alpha, merged.stop_strings, merged.num_beams) == (None, None, 1)
    assert merged.repetition_penalty in (None, 1.0) and merged.eos_token_id == 2
