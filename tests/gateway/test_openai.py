"""The official OpenAI client, unmodified, against the gateway."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from waiting import until

PROMPT = "w23 w6 w7"  # no greedy choice is close
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def client(running: Any) -> Any:
    with OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def greedy(running: Any, ids: list[int], count: int) -> str:
    """What transformers says by itself, in the model's integer layers without encryption."""
    import torch

    served = running.gateway.served
    served.hybrid.set_fhe_mode("disable")
    try:
        inputs = torch.tensor([ids])
        output = served.net.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, do_sample=False)
    finally:
        served.hybrid.set_fhe_mode("execute")
    text: str = served.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
    return text


def chat(client: OpenAI, **options: Any) -> Any:
    settings: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    return client.chat.completions.create(**(settings | options))


def test_models(client: OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "veil"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_a_chat_is_what_the_model_says(client: OpenAI, running: Any) -> None:
    reply = chat(client)
    ids = running.gateway.served.chat_ids([("user", PROMPT)])
    choice = reply.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == greedy(running, ids, 6)
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 6, 12)


def test_usage_carries_veils_counters(client: OpenAI) -> None:
    used = chat(client, messages=[{"role": "user", "content": "w40 w41 w42 w43"}]).usage
    veil, cached = used.veil, used.prompt_tokens_details.cached_tokens
    assert veil["mode"] == "execute"
    assert veil["rows"] == used.prompt_tokens - cached + used.completion_tokens - 1
    assert 0 <= veil["rows_ready"] <= veil["rows"]
    assert veil["bytes_up_online"] > 0 and veil["bytes_down_online"] > 0
    seconds = veil["seconds"]
    assert 0 <= seconds["queue"] <= seconds["first_token"] <= seconds["total"]
    assert seconds["online"] > 0 and seconds["per_token"] > 0


def test_a_conversation_sends_rows_for_its_new_tokens_only(client: OpenAI) -> None:
    turns = [{"role": "user", "content": "w50 w51 w52 w53 w54 w55"}]
    first = chat(client, messages=turns)
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "w9"}]
    second = chat(client, messages=turns)
    assert second.usage.prompt_tokens_details.cached_tokens >= 8
    assert second.usage.veil["rows"] < second.usage.prompt_tokens


def test_streaming_gives_the_same_text_and_usage_at_the_end(client: OpenAI) -> None:
    whole = chat(client)
    with chat(client, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    *rest, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in rest)
    assert len({chunk.id for chunk in chunks}) == 1
    assert rest[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in rest]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in pieces) >= 5, "pieces come one by one"
    assert [chunk.choices[0].finish_reason for chunk in rest] == [None] * (len(rest) - 1) + ["length"]


def test_without_include_usage_there_is_none(client: OpenAI) -> None:
    chunks = list(chat(client, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_trace_shows_what_left(client: OpenAI, calls: list[Any]) -> None:
    """A chunk says what left until it was written, so how many samples differ is chance; the last is what was sent last."""
    chat(client, max_tokens=1)
    last = []
    for _ in range(2):
        chunks = list(chat(client, stream=True, extra_body={"veil": {"trace": True}}))
        sent = [bytes(call.args[3]).hex() for call in calls if call.method == "evaluate"]
        samples = [chunk.veil["sample"] for chunk in chunks]
        assert all(any(data.startswith(sample) for data in sent) for sample in samples)
        assert sent[-1].startswith(samples[-1])
        assert [chunk.veil["bytes_up"] for chunk in chunks] == sorted(chunk.veil["bytes_up"] for chunk in chunks)
        last.append(samples[-1])
    assert last[0] != last[1] and chunks[-1].veil["bytes_up"] > 0


def test_logprobs(client: OpenAI) -> None:
    reply = chat(client, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert "".join(token.token for token in content) == reply.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob), "greedy takes the likeliest"
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) < 1
        assert bytes(token.bytes).decode() == token.token
    streamed = [
        token
        for chunk in chat(client, logprobs=True, top_logprobs=1, stream=True)
        for choice in chunk.choices
        for token in (choice.logprobs.content if choice.logprobs else [])
    ]
    assert [token.token for token in streamed] == [token.token for token in content]


def test_stop_strings_end_the_text_before_them(client: OpenAI) -> None:
    text = chat(client).choices[0].message.content
    stop = " " + text.split()[2]
    reply = chat(client, stop=["never", stop], logprobs=True)
    choice = reply.choices[0]
    assert choice.message.content == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, stop=stop, stream=True))
    assert streamed == choice.message.content


def test_a_seed_repeats_and_n_answers_differ(client: OpenAI) -> None:
    def sample(seed: int, n: int = 1) -> list[str]:
        reply = chat(client, seed=seed, n=n, temperature=1.5, top_p=0.95, max_completion_tokens=10)
        assert [choice.index for choice in reply.choices] == list(range(n))
        return [choice.message.content for choice in reply.choices]

    three = sample(7, 3)
    assert len(set(three)) == 3
    assert sample(7, 3) == three
    assert sample(7) == three[:1], "the first of several is the only one of one"
    assert sample(8) != three[:1]


def test_penalties_and_biases(client: OpenAI) -> None:
    plain = chat(client, max_tokens=10).choices[0].message.content.split()
    assert len(set(plain)) < 5, "this prompt makes the model repeat itself"
    varied = chat(client, max_tokens=10, frequency_penalty=2, presence_penalty=2).choices[0].message.content.split()
    assert len(set(varied)) > len(set(plain))
    forced = chat(client, logit_bias={"12": 100}, max_tokens=4).choices[0].message.content.split()
    assert forced == ["w7"] * 4
    banned = chat(client, logit_bias={"63": -100}, max_tokens=10).choices[0].message.content.split()
    assert "w58" in plain and "w58" not in banned


def test_completions(client: OpenAI, running: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 5}
    ids = running.gateway.served.text_ids(PROMPT, "prompt")
    reply = client.completions.create(prompt=[PROMPT, "w4 w5"], n=2, logprobs=2, **options)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text == greedy(running, ids, 5)
    logs = reply.choices[0].logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) == len(logs.top_logprobs) == len(logs.text_offset) == 5
    assert "".join(logs.tokens) == reply.choices[0].text
    assert client.completions.create(prompt=ids, **options).choices[0].text == reply.choices[0].text
    chunks = list(client.completions.create(prompt=PROMPT, stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "status", "param", "code"),
    [
        ({"model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"messages": [{"role": "user", "content": "w1 " * 200}]}, 400, "messages", "context_length_exceeded"),
        ({"temperature": 3}, 400, "temperature", None),
        ({"top_logprobs": 2}, 400, "top_logprobs", None),
        ({"stop": ["a"] * 5}, 400, "stop", None),
        ({"n": 0}, 400, "n", None),
        ({"logit_bias": {"9999": 1}}, 400, "logit_bias", None),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_value"),  # words, not bytes
        ({"messages": []}, 400, "messages", None),
        ({"messages": [{"role": "tool", "tool_call_id": "1"}]}, 400, "messages", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "unsupported_value"),
    ],
)
def test_errors_are_openais(client: OpenAI, options: dict[str, Any], status: int, param: str, code: str | None) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, **options)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (status, param, code)
    assert error.type == "invalid_request_error" and error.message
    with pytest.raises(openai.APIStatusError) as streamed:
        list(chat(client, stream=True, **options))
    assert streamed.value.status_code == status, "an error before the first token has its status in a stream too"


ENDLESS = {"ignore_eos": True}

NOISE = 5 * 2**0.5 * 0.0045
"""Five deviations of the difference of two encrypted logits, of which each has up to 0.0045 of their spread."""


def least_gap(running: Any, prompt: str, count: int) -> float:
    """Between the likeliest token and the next at the closest step of an answer, in standard deviations of the logits."""
    import torch

    served = running.gateway.served
    ids = torch.tensor([served.chat_ids([("user", prompt)])])
    settings = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    served.hybrid.set_fhe_mode("disable")
    try:
        made = served.net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **settings)
    finally:
        served.hybrid.set_fhe_mode("execute")
    return min(float((scores[0].topk(2).values @ torch.tensor([1.0, -1.0])) / scores[0].std()) for scores in made.scores)


def test_many_at_once_each_get_their_own_answer(running: Any) -> None:
    tried = [f"w{index} w{index + 1} w{index + 2}" for index in range(0, 60, 3)]
    prompts = [prompt for prompt in tried if least_gap(running, prompt, 5) > NOISE][:8]
    assert len(prompts) == 8
    expected = [greedy(running, running.gateway.served.chat_ids([("user", prompt)]), 5) for prompt in prompts]

    async def ask(client: AsyncOpenAI, prompt: str) -> str:
        messages: Any = [{"role": "user", "content": prompt}]
        stream = await client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=5, stream=True, user=prompt
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    assert asyncio.run(all_of_them()) == expected


def test_a_closed_stream_ends_its_generation(client: OpenAI, running: Any) -> None:
    before = running.gateway.generator.totals.rows
    with running.held_until_left(after=90):
        stream = chat(client, max_tokens=100, stream=True, extra_body=ENDLESS)
        for count, _ in enumerate(stream):
            if count == 3:
                break
        stream.close()
        assert running.idle()
    assert running.gateway.generator.totals.rows - before < 30


def test_a_closed_connection_ends_a_reply_that_is_not_a_stream(running: Any) -> None:
    before = running.gateway.generator.totals.rows
    hasty = OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0, timeout=0.3)
    with running.held_until_left(after=90), hasty as client:
        with pytest.raises(openai.APITimeoutError):
            chat(client, max_tokens=100, extra_body=ENDLESS)
        assert running.idle()
    assert running.gateway.generator.totals.rows - before < 30


def test_a_full_line_is_429_and_leaving_it_makes_room(served: Any, listen: Any) -> None:
    from veil.gateway.app import Settings

    settings = Settings(at_once=1, most_waiting=1)
    with listen(served, settings=settings) as running, running.held_until_left(after=90):
        client = OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        first = chat(client, stream=True, max_tokens=100, extra_body=ENDLESS)
        next(iter(first))
        second = running.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES})
        until(lambda: running.gateway.queue.waiting == 1, what="one that waits", state=running.state)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "5"
        second.close()
        until(lambda: running.gateway.queue.waiting == 0, what="room in the line", state=running.state)
        first.close()
        assert chat(client, max_tokens=1).choices[0].finish_reason == "length"
        client.close()


def test_an_api_key(served: Any, listen: Any) -> None:
    from veil.gateway.guard import Access

    with listen(served, access=Access(api_key="secret")) as running:
        with OpenAI(base_url=f"{running.url}/v1", api_key="secret", max_retries=0) as right:
            assert right.models.list().data[0].id == "tiny"
        with OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0) as wrong:
            with pytest.raises(openai.AuthenticationError) as caught:
                wrong.models.list()
            assert caught.value.code == "invalid_api_key"
