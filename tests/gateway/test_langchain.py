"""LangChain's OpenAI adapter, unmodified, against the gateway."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


@pytest.fixture
def model(running: Any) -> Any:
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6, "max_retries": 0}
    return ChatOpenAI(base_url=f"{running.url}/v1", api_key=SecretStr("unused"), **options)


def test_chat_and_streaming_agree(model: Any) -> None:
    messages = [("system", "w1"), ("human", "w23 w6 w7")]
    reply = model.invoke(messages)
    assert reply.content
    assert reply.response_metadata["model_name"] == "tiny"
    assert reply.usage_metadata["output_tokens"] == 6
    chunks = list(model.stream(messages, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == reply.content
    assert sum(bool(chunk.content) for chunk in chunks) > 3
    assert chunks[-1].usage_metadata is not None or any(chunk.usage_metadata for chunk in chunks)


def test_several_at_once(model: Any) -> None:
    prompts = ["w1 w2", "w3 w4", "w23 w6 w7"]
    together = model.batch(prompts)
    assert [reply.content for reply in together] == [model.invoke(prompt).content for prompt in prompts]


def test_logprobs_and_stop(model: Any) -> None:
    reply = model.bind(logprobs=True, top_logprobs=2).invoke("w23 w6 w7")
    tokens = reply.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == reply.content
    word = " " + reply.content.split()[2]
    assert model.invoke("w23 w6 w7", stop=[word]).content == reply.content[: reply.content.index(word)]


def test_an_error_is_the_adapters_own(model: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="context"):
        model.invoke("w1 " * 300)
