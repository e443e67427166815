"""The form that an answer must have, as requests ask for it: OpenAI's response formats and vLLM's structured outputs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from veil.gateway.bodies import Request, Text


class PlainText(Request):
    """Any text."""

    type: Literal["text"]


class JsonObject(Request):
    """Any JSON object, or one by a schema (as llama.cpp has it)."""

    type: Literal["json_object"]
    schema_: dict[str, object] | None = Field(default=None, alias="schema")


class NamedSchema(Request):
    """A schema by name. It is followed exactly with ``strict`` and without."""

    name: Annotated[Text, Field(max_length=256)]
    description: Text | None = None
    schema_: dict[str, object] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchema(Request):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]


class StructuredOutputs(Request):
    """vLLM's newer form of what answers must look like."""

    json_: dict[str, object] | str | None = Field(default=None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=1024)] | None = None
    grammar: Text | None = None
