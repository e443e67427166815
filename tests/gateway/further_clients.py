"""Clients that hold back others' versions, as they are: ``python further_clients.py NAME URL`` in their own environment.

It ends with an error where something is not as it has to be; `test_further_clients.py` runs it.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ASK: Any = [{"role": "user", "content": "time?"}]
INSTRUCTOR_MODES = ("JSON", "MD_JSON", "TOOLS", "JSON_SCHEMA", "TOOLS_STRICT", "RESPONSES_TOOLS")


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    fed: bool


def instructor(url: str) -> None:
    """In each mode, of which the first two tell the model the schema in words."""
    import openai
    from instructor import Mode, from_openai

    for mode in INSTRUCTOR_MODES:
        client = from_openai(openai.OpenAI(base_url=url, api_key="unused", max_retries=0), mode=Mode[mode])
        options: Any = {"max_output_tokens": 100} if mode.startswith("RESPONSES") else {"max_tokens": 100}
        found = client.chat.completions.create(model="bytes", messages=ASK, response_model=Pet, max_retries=1, **options)
        assert isinstance(found, Pet), mode


def litellm(url: str) -> None:
    """Text, tools, a schema, and responses."""
    from litellm import completion, responses

    options: Any = {"model": "openai/bytes", "api_base": url, "api_key": "unused", "num_retries": 0}
    assert completion(messages=ASK, max_tokens=20, **options).choices[0].message.content == "good day"
    tool: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    reply = completion(messages=ASK, max_tokens=200, tools=[tool], **options)
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {"zone": "CET"})
    response = responses(input="hi", max_output_tokens=20, **options)
    assert response.output[0].content[0].text == "good day"
    parsed = completion(messages=ASK, max_tokens=100, response_format=Pet, **options)
    assert Pet.model_validate_json(parsed.choices[0].message.content)


def llama_index(url: str) -> None:
    """A structure, and text."""
    from llama_index.core.prompts import PromptTemplate
    from llama_index.llms.openai_like import OpenAILike

    for tools in (True, False):
        options: Any = {"is_chat_model": True, "is_function_calling_model": tools, "context_window": 1024, "max_tokens": 200}
        model = OpenAILike(model="bytes", api_base=url, api_key="unused", max_retries=0, **options)
        if tools:
            assert isinstance(model.structured_predict(Pet, PromptTemplate("a pet")), Pet)
        assert model.complete("hi").text is not None


if __name__ == "__main__":
    {"instructor": instructor, "litellm": litellm, "llama_index": llama_index}[sys.argv[1]](sys.argv[2])
