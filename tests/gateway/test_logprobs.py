"""Log-probabilities are of tokens: each has its bytes, none is merged with another, and all are JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest
import torch

from veil.errors import NotFiniteActivation
from veil.gateway.sampling import Sampler, Sampling
from veil.gateway.tokens import TokenBytes, shown

WORD = "é😀x"
"""One byte a token: characters of two, four and one."""


def ask(running: Any, path: str, **options: Any) -> Any:
    body = {"model": "bytes", "temperature": 0, "max_tokens": 7, "guided_regex": WORD} | options
    body |= {"prompt": "hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}
    reply = httpx.post(running.url + path, json=body, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply


def chat_tokens(reply: Any, stream: bool) -> list[Any]:
    if not stream:
        found: list[Any] = reply.json()["choices"][0]["logprobs"]["content"]
        return found
    events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    return [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chats_tokens_have_their_bytes(bytes_running: Any, stream: bool) -> None:
    tokens = chat_tokens(ask(bytes_running, "/v1/chat/completions", logprobs=True, top_logprobs=20, stream=stream), stream)
    assert b"".join(bytes(token["bytes"]) for token in tokens) == WORD.encode()
    assert [token["token"] for token in tokens] == [*(f"\\x{byte:02x}" for byte in "é😀".encode()), "x"]
    for token in tokens:
        assert len(token["top_logprobs"]) == 20
        assert len({json.dumps(top["bytes"]) for top in token["top_logprobs"]}) == 20
        assert all(math.isfinite(top["logprob"]) for top in token["top_logprobs"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_completions_tokens_are_not_merged_by_their_texts(bytes_running: Any, stream: bool) -> None:
    reply = ask(bytes_running, "/v1/completions", logprobs=20, stream=stream)
    if stream:
        events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
        parts = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
        logs = {name: [item for part in parts for item in part[name]] for name in parts[0]}
    else:
        logs = reply.json()["choices"][0]["logprobs"]
    assert logs["tokens"] == [*(f"bytes:\\x{byte:02x}" for byte in "é😀".encode()), "x"]
    assert logs["text_offset"] == [0, 0, 1, 1, 1, 1, 2]
    for token, logprob, top in zip(logs["tokens"], logs["token_logprobs"], logs["top_logprobs"], strict=True):
        assert top[token] == logprob, "the token that was taken has its own log-probability"
        assert len(top) in (20, 21), "twenty and the one that was taken"


def test_the_logprobs_are_the_models(bytes_running: Any) -> None:
    served = bytes_running.gateway.served
    tokens = chat_tokens(ask(bytes_running, "/v1/chat/completions", logprobs=True, top_logprobs=2), False)
    ids = served.chat_ids([("user", "hi")])
    with torch.no_grad():
        logits = served.net(torch.tensor([ids])).logits[0, -1]
    expected = logits.double().log_softmax(-1)
    first = served.tokenizer("é")["input_ids"][0]
    assert tokens[0]["logprob"] == pytest.approx(float(expected[first]), abs=1e-5)
    assert [top["logprob"] for top in tokens[0]["top_logprobs"]] == pytest.approx(expected.topk(2).values.tolist(), abs=1e-5)


def test_two_tokens_of_one_text_are_two(bytes_running: Any, monkeypatch: Any) -> None:
    of = TokenBytes.of
    monkeypatch.setattr(TokenBytes, "of", lambda self, token: b"same" if token < 200 else of(self, token))
    logs = ask(bytes_running, "/v1/completions", logprobs=20, guided_regex="x", max_tokens=1).json()["choices"][0][
        "logprobs"
    ]
    (top,), (logprob,) = logs["top_logprobs"], logs["token_logprobs"]
    assert logs["tokens"] == ["same"] and top["same"] == logprob
    assert len(top) in (20, 21) and any(name.startswith("token_id:") for name in top)


def test_minus_infinity_is_a_number_that_json_has() -> None:
    sampler = Sampler(Sampling(max_tokens=1, temperature=0, logprobs=4))
    scores = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]])
    sampler(torch.tensor([[1]]), scores)
    assert sampler.last is not None
    assert (sampler.last.logprob, sorted(value for _, value in sampler.last.top)) == (0, [-9999, -9999, -9999, 0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_the_answer(bad: float) -> None:
    sampler = Sampler(Sampling(max_tokens=1))
    with pytest.raises(NotFiniteActivation, match="NaN or infinite"):
        sampler(torch.tensor([[1]]), torch.tensor([[0.0, bad]]))
    with pytest.raises(NotFiniteActivation):
        sampler(torch.tensor([[1]]), torch.tensor([[-torch.inf, -torch.inf]]))


def test_bytes_of_other_tokenizers() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁a": 1, "b": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    assert tokens.of(3 + 0xC3) == b"\xc3" and tokens.is_byte(3) and not tokens.is_byte(1)
    assert tokens.of(1) is None, "whether the space is shown depends on what stands before it"
    assert tokens.of(0) == b"<unk>" and tokens.text(0) == "<unk>" and tokens.text(2) == ""
    assert shown(b"\xc3") == "\\xc3" and shown("é".encode()) == "é"


def test_a_vector_that_is_not_finite_is_no_answer(bytes_running: Any, monkeypatch: Any) -> None:
    from types import SimpleNamespace

    from veil.flag import Flag
    from veil.gateway.account import Account

    served, generator = bytes_running.gateway.served, bytes_running.gateway.generator
    monkeypatch.setattr(served, "kind", "encoder")
    monkeypatch.setattr(served, "net", lambda **_: SimpleNamespace(last_hidden_state=torch.tensor([[[1.0, torch.inf]]])))
    with pytest.raises(NotFiniteActivation, match="vector"):
        generator.embed([1], Account(), Flag())
