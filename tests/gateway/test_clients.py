"""Clients as they are, against a tiny model that says what it is told or follows the schema: each way that people use them.

openai's and LangChain's, and those that hold back others' versions, have files of their own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours

CALL = "<tool_call>" + json.dumps({"name": "clock", "arguments": {"zone": "CET"}}) + "</tool_call>"
ASK: Any = [{"role": "user", "content": "time?"}]


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    fed: bool


@pytest.fixture
def url(bytes_running: Any) -> str:
    return f"{bytes_running.url}/v1"


# Anthropic -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def anthropic_client(bytes_running: Any) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=bytes_running.url, api_key="unused", max_retries=0) as made:
        yield made


def test_anthropic(anthropic_client: Any, bytes_running: Any, script: Any) -> None:
    import anthropic

    script(bytes_running, "good day", "good day", CALL, "It is noon.")
    options: Any = {"model": "bytes", "max_tokens": 100}
    reply = anthropic_client.messages.create(messages=ASK, **options)
    assert (reply.content[0].text, reply.stop_reason) == ("good day", "end_turn")
    with anthropic_client.messages.stream(messages=ASK, **options) as stream:
        assert "".join(stream.text_stream) == "good day"
        assert stream.get_final_message().stop_reason == "end_turn"
    tool: Any = {"name": "clock", "input_schema": {"type": "object", "properties": {"zone": {"type": "string"}}}}
    with anthropic_client.messages.stream(messages=ASK, tools=[tool], **options) as stream:
        made = stream.get_final_message()
    (call,) = made.content
    assert (made.stop_reason, call.name, call.input) == ("tool_use", "clock", {"zone": "CET"})
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "12:00"}
    turns = [*ASK, {"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
    assert anthropic_client.messages.create(messages=turns, tools=[tool], **options).content[0].text == "It is noon."
    assert anthropic_client.messages.count_tokens(model="bytes", messages=ASK).input_tokens > 5
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        anthropic_client.messages.create(model="other", max_tokens=1, messages=ASK)
    assert [card.id for card in anthropic_client.models.list()] == ["bytes"]


def test_anthropic_parses(anthropic_client: Any) -> None:
    reply = anthropic_client.messages.parse(model="bytes", max_tokens=100, messages=ASK, output_format=Pet)
    assert isinstance(reply.parsed_output, Pet)


# Others over OpenAI's API ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(url: str, bytes_running: Any, script: Any, kind: str) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers.openai import OpenAIProvider

    http = httpx.AsyncClient()
    model = getattr(models, kind)("bytes", provider=OpenAIProvider(base_url=url, api_key="unused", http_client=http))
    agent: Any = Agent(model, model_settings={"max_tokens": 200})
    asked = []

    @agent.tool_plain  # type: ignore[untyped-decorator]
    def clock(zone: str) -> str:
        """The time."""
        asked.append(zone)
        return "12:00"

    async def ask() -> None:
        async with http:
            script(bytes_running, CALL, "It is noon.")
            assert ((await agent.run("time?")).output, asked) == ("It is noon.", ["CET"])
            for output in (Pet, NativeOutput(Pet)):
                made: Any = Agent(model, output_type=output, model_settings={"max_tokens": 200})
                assert isinstance((await made.run("a pet")).output, Pet)

    asyncio.run(ask())


def test_simonw_llm(url: str, bytes_running: Any, script: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    llm = pytest.importorskip("llm")
    from llm.default_plugins.openai_models import Chat

    untyped: Any = Chat
    model = untyped("bytes", model_name="bytes", api_base=url, supports_schema=True, supports_tools=True)
    model.key = "unused"
    schema = model.prompt("a pet", schema=Pet, max_tokens=100, stream=False)
    assert Pet.model_validate_json(schema.text())

    def clock(zone: str) -> str:
        """The time."""
        return f"12:00 {zone}"

    script(bytes_running, CALL, "It is noon.")
    chain = model.chain("time?", tools=[llm.Tool.function(clock)], options={"max_tokens": 200})
    assert "It is noon." in chain.text()


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_langchain_over_responses(url: str, bytes_running: Any, script: Any, method: Any) -> None:
    from langchain_openai import ChatOpenAI

    options: Any = {"use_responses_api": True, "max_tokens": 200, "max_retries": 0}
    model = ChatOpenAI(base_url=url, api_key=SecretStr("unused"), model="bytes", **options)
    if method == "json_mode":
        script(bytes_running, '{"kind": "dog", "fed": false}')
    assert isinstance(model.with_structured_output(Pet, method=method).invoke("a pet, as JSON"), Pet)
