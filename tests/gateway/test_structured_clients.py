"""Structured answers and tools through clients as they are: OpenAI's and LangChain's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, SecretStr

KEY = SecretStr("unused")


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    fed: bool


class Household(BaseModel):
    """Somebody's pets."""

    model_config = ConfigDict(extra="forbid")

    pet: Pet
    other: Pet | None


@pytest.fixture
def client(bytes_running: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{bytes_running.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_openai_parses_answers(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    reply = client.chat.completions.parse(model="bytes", messages=messages, response_format=Household, max_tokens=300)
    found = reply.choices[0].message.parsed
    assert isinstance(found, Household) and found.pet.kind in ("cat", "dog")
    with client.chat.completions.stream(
        model="bytes", messages=messages, response_format=Household, max_tokens=300, seed=1
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Household)


def test_openai_parses_tools(client: OpenAI) -> None:
    import openai

    messages: Any = [{"role": "user", "content": "hi"}]
    tool = openai.pydantic_function_tool(Household)
    options: Any = {"model": "bytes", "messages": messages, "tools": [tool], "tool_choice": "required", "max_tokens": 300}
    (call,) = client.chat.completions.parse(**options).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Household)
    with client.chat.completions.stream(**options) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert isinstance(streamed.function.parsed_arguments, Household)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_structures_answers(bytes_running: Any, method: Any) -> None:
    model = ChatOpenAI(
        base_url=f"{bytes_running.url}/v1", api_key=KEY, model="bytes", max_completion_tokens=300, max_retries=0
    )
    found = model.with_structured_output(Household, method=method).invoke("hi")
    assert isinstance(found, Household)


def test_langchain_binds_tools(bytes_running: Any) -> None:
    model = ChatOpenAI(
        base_url=f"{bytes_running.url}/v1", api_key=KEY, model="bytes", max_completion_tokens=300, max_retries=0
    )
    reply = model.bind_tools([Household], tool_choice="Household").invoke("hi")
    (call,) = reply.tool_calls
    assert call["name"] == "Household" and Household(**call["args"])
