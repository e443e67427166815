"""The OpenAI API's requests, as far as a text model has them, vLLM's and llama.cpp's additions, and veil's own.

What is not named here is refused by its name: a field that is ignored is a wrong answer without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from veil.gateway.bodies import Body, Request, Text
from veil.gateway.forms import ResponseFormat, StructuredOutputs

INT64 = 1 << 63

Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0, le=1 << 31, strict=True)]
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
