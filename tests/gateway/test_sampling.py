"""How tokens are chosen: cuts, penalties, bans and limits, each as transformers or vLLM has it, also at the edges."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TypicalLogitsWarper

from veil.gateway.sampling import Sampler, Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
PROMPT = torch.tensor([[0, 3]])


def drawn(ids: torch.Tensor = PROMPT, ends: frozenset[int] = frozenset(), times: int = 400, **options: Any) -> Counter[int]:
    """How often each token is drawn first."""
    counts: Counter[int] = Counter()
    for seed in range(times):
        sampler = Sampler(Sampling(max_tokens=9, seed=seed, **{"temperature": 1.0} | options), ends)
        counts[int(sampler(ids, LOGITS.clone()).argmax())] += 1
    return counts


@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_k": 2}, TopKLogitsWarper(2)),
        ({"top_k": 1000}, TopKLogitsWarper(1000)),
        ({"min_p": 0.3}, MinPLogitsWarper(0.3)),
        ({"min_p": 1.0}, MinPLogitsWarper(1.0)),
        ({"typical_p": 0.4}, TypicalLogitsWarper(0.4)),
        ({"repetition_penalty": 3.0}, RepetitionPenaltyLogitsProcessor(3.0)),
        ({"repetition_penalty": 0.5}, RepetitionPenaltyLogitsProcessor(0.5)),
    ],
    ids=lambda part: str(part) if isinstance(part, dict) else "",
)
def test_shares_are_those_of_transformers(options: dict[str, Any], warper: Any) -> None:
    expected = warper(PROMPT, LOGITS.clone()).softmax(-1)[0]
    counts = drawn(**options)
    for token, share in enumerate(expected.tolist()):
        assert abs(counts[token] / 400 - share) <= 4.5 * max(share * (1 - share), 1e-12) ** 0.5 / 20
        assert bool(counts[token]) <= bool(share), "what is cut never comes"


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-320, 1e-45, 1e-38, 1e-30, 1e-5])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "top_k": 3, "min_p": 0.1, "typical_p": 0.9}], ids=str)
def test_a_temperature_near_zero_takes_the_likeliest(temperature: float, options: dict[str, Any]) -> None:
    assert drawn(temperature=temperature, times=5, **options) == {0: 5}


@pytest.mark.parametrize("temperature", [1e-38, 1e-320])
def test_tiny_temperatures_through_the_api(bytes_running: Any, temperature: float) -> None:
    body = {"model": "bytes", "prompt": "hi", "max_tokens": 5, "ignore_eos": True}
    url = f"{bytes_running.url}/v1/completions"
    greedy = httpx.post(url, json=body | {"temperature": 0}).json()["choices"][0]["text"]
    assert httpx.post(url, json=body | {"temperature": temperature}).json()["choices"][0]["text"] == greedy


def test_suppressed_tokens_stay_so() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    for options in ({"bias": {0: 100.0}}, {"repetition_penalty": 9.0}, {"temperature": 1e-40}, {"typical_p": 0.1}):
        sampler = Sampler(Sampling(max_tokens=1, seed=1, **options))
        assert int(sampler(torch.tensor([[0, 2]]), scores).argmax()) == 1


def test_penalties_leave_the_prompt_alone_and_repetition_does_not() -> None:
    sampler = Sampler(Sampling(max_tokens=9, temperature=0, presence_penalty=2, frequency_penalty=2))
    assert int(sampler(torch.tensor([[0, 0, 0]]), LOGITS).argmax()) == 0, "what the prompt has is not penalized"
    assert int(sampler(torch.tensor([[0, 0, 0, 0]]), LOGITS).argmax()) == 1, "what the answer has is"
    assert int(Sampler(Sampling(max_tokens=9, temperature=0, repetition_penalty=3))(PROMPT, LOGITS).argmax()) == 1


def test_ends_wait_for_min_tokens_and_ignore_eos_bans_the_models_own() -> None:
    ends = frozenset({0})
    sampler = Sampler(Sampling(max_tokens=9, temperature=0, min_tokens=2, stop_tokens=frozenset({1})), ends)
    assert [int(sampler(torch.zeros((1, 2 + made), dtype=torch.long), LOGITS).argmax()) for made in range(3)] == [2, 2, 0]
    never = Sampler(Sampling(max_tokens=9, temperature=0, ignore_eos=True, stop_tokens=frozenset({1})), ends)
    assert [int(never(torch.zeros((1, 2 + made), dtype=torch.long), LOGITS).argmax()) for made in range(3)] == [1, 1, 1]
    only = torch.tensor([[0.0, -torch.inf]])
    assert int(Sampler(Sampling(max_tokens=9, ignore_eos=True), ends)(PROMPT, only).argmax()) == 0, "nothing else is left"


# Through the API -------------------------------------------------------------------------------------------------------

A, B, END, MARK = 1, 2, 256, 259


@pytest.fixture
def ask(bytes_running: Any, byte_tokenizer: Any) -> Any:
    """The answer to a prompt, with biases by text."""

    def ask(prefer: dict[str, float], **options: Any) -> tuple[str, str, int]:
        bias = {str(byte_tokenizer.convert_tokens_to_ids(text)): value for text, value in prefer.items()}
        body = {"model": "bytes", "prompt": "hi", "max_tokens": 6, "temperature": 0, "logit_bias": bias} | options
        reply = httpx.post(f"{bytes_running.url}/v1/completions", json=body).json()
        (choice,) = reply["choices"]
        return choice["text"], choice["finish_reason"], reply["usage"]["completion_tokens"]

    return ask


def test_stop_token_ids(ask: Any, byte_tokenizer: Any) -> None:
    x = byte_tokenizer.convert_tokens_to_ids("x")
    assert ask({"x": 100}) == ("xxxxxx", "length", 6)
    assert ask({"x": 100}, stop_token_ids=[x]) == ("", "stop", 1)
    text, reason, tokens = ask({"x": 100}, stop_token_ids=[x], min_tokens=3)
    assert (reason, tokens, len(text)) == ("stop", 4, 3) and "x" not in text


def test_ignore_eos(ask: Any) -> None:
    assert ask({"<|end|>": 100}) == ("", "stop", 1)
    _, reason, tokens = ask({"<|end|>": 100}, ignore_eos=True)
    assert (reason, tokens) == ("length", 6)


def test_min_tokens(ask: Any) -> None:
    assert ask({"<|end|>": 100}, min_tokens=4)[1:] == ("stop", 5)
    assert ask({"x": 100}, stop="xx", min_tokens=4) == ("xx", "stop", 4), "as soon as there are four"
    assert ask({"<|end|>": 100}, min_tokens=20, max_tokens=None)[1:] == ("length", 20)


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        ("<|mark|>", "ab", 3),
        (["never", "b<|mark|>"], "a", 3),
        ("<|mark|>c", "ab", 4),
        ("<|mark|>d", "abcd", 5),
        ("bc", "a", 4),
        ("b<|mark|>cd<|end|>", "a", 6),
        ("d<|end|>", "abc", 6),
        ("<|mark|", "abcd", 6),
        ("<|mark|>cd!", "abcd", 6),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_stops_that_have_special_tokens(
    bytes_running: Any, byte_served: Any, monkeypatch: Any, stop: Any, text: str, tokens: int, stream: bool
) -> None:
    import json

    ids = iter(byte_served.tokenizer("ab<|mark|>cd<|end|>")["input_ids"])
    call = Sampler.__call__

    def scripted(self: Any, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(call(self, input_ids, scores), -torch.inf)
        only[0, next(ids)] = 0
        return only

    monkeypatch.setattr(Sampler, "__call__", scripted)
    body = {"model": "bytes", "prompt": "hi", "max_tokens": 9, "stop": stop, "stream": stream}
    body |= {"stream_options": {"include_usage": True}} if stream else {}
    reply = httpx.post(f"{bytes_running.url}/v1/completions", json=body)
    events = (
        [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
        if stream
        else [reply.json()]
    )
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == text
    if stop == "<|mark|>d":
        tokens = 6
    assert events[-1]["usage"]["completion_tokens"] == tokens
    assert [choice["finish_reason"] for event in events for choice in event["choices"]][-1] == "stop"


def test_chat_template_kwargs_reach_the_template(serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% if think %}w1 w2 w3{% else %}w1{% endif %}{{ documents }}"
    served = serve_model(new_model("llama"), tokenizer, mode="disable")
    with listen(served) as running:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "w9"}], "max_tokens": 1}
        url = f"{running.url}/v1/chat/completions"
        assert httpx.post(url, json=body).json()["usage"]["prompt_tokens"] == 1
        kwargs = {"chat_template_kwargs": {"think": True}}
        assert httpx.post(url, json=body | kwargs).json()["usage"]["prompt_tokens"] == 3
        for name in ("tools", "chat_template", "add_generation_prompt", "messages", "tokenize", "return_tensors"):
            error = httpx.post(url, json=body | {"chat_template_kwargs": {name: 1}}).json()["error"]
            assert error["param"] == "chat_template_kwargs"
    served.hybrid.close()
