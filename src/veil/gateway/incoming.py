"""The OpenAI API's requests, as far as a text model has them, vLLM's and llama.cpp's additions, and veil's own.

What is not named here is refused by its name: a field that is ignored is a wrong answer without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

INT64 = 1 << 63

Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0, le=1 << 31, strict=True)]
Text = Annotated[str, Field(strict=True)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256, strict=True)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


def _kind(value: object) -> str | None:
    """Which alternative is meant, so that an error is about that one. The names have spaces: no field is called so."""
    if isinstance(value, str):
        return "a text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, int | float):
        return "token ids"
    return "several token ids" if isinstance(first, list) else "several texts"


def _text_or_list(value: object) -> str | None:
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else None


def _by(which: Callable[[object], str | None], wanted: str) -> Discriminator:
    return Discriminator(which, "wrong_kind", f"it has to be {wanted}")


_Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20, fail_fast=True)]
_STOP = _by(_text_or_list, "a text or a list of up to four")
_CONTENT = _by(_text_or_list, "a text or a list of parts")
_PROMPT = _by(_kind, "a text, a list of texts, or one or several lists of token ids")

Stop = Annotated[
    Annotated[StopText, Tag("a text")]
    | Annotated[Annotated[list[StopText], Field(max_length=4, fail_fast=True)], Tag("a list")],
    _STOP,
]


_Prompt = (
    Annotated[Text, Tag("a text")]
    | Annotated[Annotated[list[Text], Field(min_length=1, max_length=64, fail_fast=True)], Tag("several texts")]
    | Annotated[_Ids, Tag("token ids")]
    | Annotated[Annotated[list[_Ids], Field(min_length=1, max_length=64, fail_fast=True)], Tag("several token ids")]
)
_Input = (
    Annotated[Text, Tag("a text")]
    | Annotated[Annotated[list[Text], Field(min_length=1, max_length=256, fail_fast=True)], Tag("several texts")]
    | Annotated[_Ids, Tag("token ids")]
    | Annotated[Annotated[list[_Ids], Field(min_length=1, max_length=256, fail_fast=True)], Tag("several token ids")]
)


_MOST_VALUES = 1 << 17


class Request(BaseModel):
    """A part of a request; only fields that are named are taken. Others that are null say nothing and are left out."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name in cls.model_fields}


class Body(Request):
    """A whole request: JSON as it should be, without NaN, infinities and halves of characters."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: object) -> object:
        check_values(given)
        return given


def check_values(given: object) -> None:
    """`PydanticCustomError` for numbers and texts that JSON does not have, wherever they are, and for too many of them."""
    waiting, seen = [given], 0
    while waiting:  # places are looked for when something is wrong
        value = waiting.pop()
        seen += 1
        if seen + len(waiting) > _MOST_VALUES:
            first = _longest(given)
            context = {"place": first, "message": f"a request has at most {_MOST_VALUES:,} values besides token ids"}
            raise PydanticCustomError("not_json", "{message}", context)
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += [inner for inner in value if type(inner) is not int]
        elif _problem(value):
            place, message = next(_problems("", given))
            raise PydanticCustomError("not_json", "{message}", {"place": place, "message": message})


def _longest(given: object) -> str:
    """The field with the longest list."""
    lists = {name: len(value) for name, value in given.items() if isinstance(value, list)} if isinstance(given, dict) else {}
    return ascii(max(lists, key=lambda name: lists[name]))[1:-1] if lists else ""


def _problem(value: object) -> str:
    """What is wrong with a text or a number; empty if nothing is."""
    if isinstance(value, str) and not value.isascii() and not _is_whole(value):
        return "a text with half of a character (a lone surrogate) has no tokens"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN and infinities are no JSON, and a number past 1e308 is one"
    return ""


def _problems(place: str, value: object) -> Iterator[tuple[str, str]]:
    """Every place where something is wrong, and what."""
    inner: list[tuple[str, object]] = []
    if isinstance(value, dict):
        inner = [(_join(place, name), part) for name, item in value.items() for part in (name, item)]
    elif isinstance(value, list):
        inner = [(_join(place, index), item) for index, item in enumerate(value)]
    elif problem := _problem(value):
        yield place, problem
    for where, item in inner:
        yield from _problems(where, item)


def _join(place: str, name: object) -> str:
    part = str(name).encode("ascii", "backslashreplace").decode()
    return f"{place}.{part}" if place else part


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Chats ---------------------------------------------------------------------------------------------------------------


class TextPart(Request):
    """A part of a message that is text."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None


class OtherPart(BaseModel):
    """A part of a message that is something else."""

    model_config = ConfigDict(extra="allow")

    type: str


def _part(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "text part" if kind in ("text", "input_text", "output_text", "refusal") else "other part"


Part = Annotated[Annotated[TextPart, Tag("text part")] | Annotated[OtherPart, Tag("other part")], Discriminator(_part)]
Content = Annotated[Annotated[Text, Tag("a text")] | Annotated[list[Part], Tag("a list")], _CONTENT]


class CalledFunction(Request):
    """What an assistant's turn called."""

    name: FunctionName
    arguments: Text


class PastToolCall(Request):
    """A call in an assistant's turn."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Request):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Text | None = None
    tool_calls: Annotated[list[PastToolCall], Field(max_length=256)] | None = None
    tool_call_id: Text | None = None
    refusal: Text | None = None
    annotations: Annotated[list[object], Field(max_length=0)] | None = None


class FunctionSpec(Request):
    """A function that the model may call: its parameters as a JSON schema."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Request):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionChoice(Request):
    """A function by name."""

    name: FunctionName


class NamedTool(Request):
    """The tool that has to be called."""

    type: Literal["function"]
    function: FunctionChoice


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a text")] | Annotated[NamedTool, Tag("a tool")],
    _by(
        lambda value: "a text" if isinstance(value, str) else "a tool" if isinstance(value, dict | NamedTool) else None,
        "none, auto, required, or a tool by name",
    ),
]


# Structure -----------------------------------------------------------------------------------------------------------


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


# Requests ------------------------------------------------------------------------------------------------------------


class StreamOptions(Request):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Trace(Request):
    """veil's own options: with ``trace`` every chunk says what left this machine for it."""

    trace: bool = False


class SamplingRequest(Body):
    """What chat and plain completions have in common. The last fields have no effect here, as clients expect."""

    model: Text
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, object] | str | None = None
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Field(min_length=1, max_length=1024)] | None = None
    guided_grammar: Text | None = None
    grammar: Text | None = None
    json_schema: dict[str, object] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    veil: Trace | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None


class ChatRequest(SamplingRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None


class CompletionRequest(SamplingRequest):
    """``POST /v1/completions``: text to continue, as strings or as token ids."""

    prompt: Annotated[_Prompt, _PROMPT]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: int | None = None
    suffix: Annotated[Text, Field(max_length=0)] | None = None


class EmbeddingRequest(Body):
    """``POST /v1/embeddings``: texts, as strings or as token ids."""

    model: Text
    input: Annotated[_Input, _PROMPT]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Text | None = None


class ExpectRequest(Body):
    """``POST /veil/expect``: a prompt of about so many characters is being written."""

    model: Text | None = None
    characters: Annotated[int, Field(ge=0, le=1 << 20)]
    new_tokens: Annotated[int, Field(ge=0, le=1 << 16)] = 256


class TokenizeRequest(Body):
    """``POST /tokenize``: a text, or a chat as the model's template writes it."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: dict[str, object] | None = None


class DetokenizeRequest(Body):
    """``POST /detokenize``: token ids."""

    model: Text | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]
