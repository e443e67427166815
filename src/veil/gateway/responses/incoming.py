"""Requests of `/v1/responses`, and what they mean as a chat."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from veil.gateway import forms
from veil.gateway import incoming as chats
from veil.gateway.bodies import Body, Request, Text
from veil.gateway.failures import bad_parameter
from veil.gateway.incoming import Count, FunctionName, Share


class MessageItem(Request):
    """A turn, or one of an earlier response's."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[dict[str, object]]
    id: Text | None = None
    status: Text | None = None
    phase: Text | None = None


class CallItem(Request):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Text
    name: FunctionName
    arguments: Text
    id: Text | None = None
    status: Text | None = None


class ResultItem(Request):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | list[dict[str, object]]
    id: Text | None = None
    status: Text | None = None


def _which(value: object) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in ("message", "function_call", "function_call_output") else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_which, "wrong_kind", "an item is a message, a function_call or a function_call_output"),
]


class FunctionTool(Request):
    """A function that the model may call; other kinds of tools run on OpenAI's machines and are not here."""

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class NamedFunction(Request):
    """The function that has to be called."""

    type: Literal["function"]
    name: FunctionName


class PlainFormat(Request):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Request):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Request):
    """JSON by a schema."""

    type: Literal["json_schema"]
    name: Annotated[Text, Field(max_length=256)]
    description: Text | None = None
    schema_: dict[str, object] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Request):
    """What words must look like."""

    format: Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(Body):
    """``POST /v1/responses``. The last fields have no effect here, as clients expect."""

    model: Text
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=2048)]
    instructions: Text | None = None
    previous_response_id: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Field(ge=-chats.INT64, lt=chats.INT64)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: chats.StreamOptions | None = None
    store: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    user: Text | None = None
    metadata: dict[str, str] | None = None
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=1)] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None


def messages_of(given: str | list[Item]) -> list[chats.Message]:
    """A request's input as turns of a chat; a function call belongs to the assistant's turn before it. `ApiError`."""
    if isinstance(given, str):
        return [chats.Message(role="user", content=given)]
    made: list[chats.Message] = []
    for place, item in enumerate(given):
        if isinstance(item, MessageItem):
            made.append(chats.Message(role=item.role, content=content_of(item.content, f"input.{place}")))
        elif isinstance(item, ResultItem):
            content = content_of(item.output, f"input.{place}")
            made.append(chats.Message(role="tool", content=content, tool_call_id=item.call_id))
        else:
            called = chats.CalledFunction(name=item.name, arguments=item.arguments)
            call = chats.PastToolCall(id=item.call_id, function=called)
            if made and made[-1].role == "assistant":
                made[-1].tool_calls = [*(made[-1].tool_calls or []), call]
            else:
                made.append(chats.Message(role="assistant", tool_calls=[call]))
    return made


def content_of(given: str | list[dict[str, object]], where: str) -> str | list[chats.Part]:
    """A turn's content with its parts as chats have them. `ApiError`."""
    if isinstance(given, str):
        return given
    parts: list[chats.Part] = []
    for part in given:
        kind, text, refusal = part.get("type"), part.get("text"), part.get("refusal")
        if kind in ("input_text", "output_text") and isinstance(text, str):
            parts.append(chats.TextPart(type="text", text=text))
        elif kind == "refusal" and isinstance(refusal, str):
            parts.append(chats.TextPart(type="refusal", refusal=refusal))
        elif kind == "input_image":
            parts.append(chats.OtherPart.model_validate({"type": "image_url", "image_url": {"url": part.get("image_url")}}))
        else:
            raise bad_parameter("input", f"{where}: only input_text, output_text and input_image parts are supported")
    return parts


def chat_of(body: ResponseRequest, before: list[chats.Message]) -> chats.ChatRequest:
    """The request as a chat's, after the turns of earlier responses. `ApiError`."""
    turns = [*before, *messages_of(body.input)]
    if body.instructions:
        turns = [chats.Message(role="system", content=body.instructions), *turns]
    choice: chats.ToolChoice | None
    if isinstance(body.tool_choice, NamedFunction):
        choice = chats.NamedTool(type="function", function=chats.FunctionChoice(name=body.tool_choice.name))
    else:
        choice = body.tool_choice
    return chats.ChatRequest(
        model=body.model,
        messages=turns,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text),
        chat_template_kwargs=body.chat_template_kwargs,
        user=body.user,
    )


def _tool(tool: FunctionTool) -> chats.Tool:
    function = chats.FunctionSpec(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return chats.Tool(type="function", function=function)


def _format(text: TextOptions | None) -> forms.JsonObject | forms.JsonSchema | None:
    wanted = text.format if text is not None else None
    if isinstance(wanted, ObjectFormat):
        return forms.JsonObject(type="json_object")
    if isinstance(wanted, SchemaFormat):
        named = forms.NamedSchema.model_validate({"name": wanted.name, "schema": wanted.schema_})
        return forms.JsonSchema(type="json_schema", json_schema=named)
    return None
