"""Requests of `/v1/messages`, and what they mean as a chat."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field

from veil.gateway import forms
from veil.gateway import incoming as chats
from veil.gateway.bodies import Body, Request, Text
from veil.gateway.failures import bad_parameter
from veil.gateway.incoming import Count, FunctionName, Share, StopText


class CacheControl(Request):
    """What another provider should keep; here every conversation's beginning is kept."""

    type: Literal["ephemeral"]
    ttl: Text | None = None


class TextBlock(Request):
    """Words."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None
    citations: Annotated[list[object], Field(max_length=0)] | None = None


class ImageBlock(Request):
    """An image."""

    type: Literal["image"]
    source: dict[str, object]
    cache_control: CacheControl | None = None


class ToolUseBlock(Request):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: Text
    name: FunctionName
    input: dict[str, object]
    caller: dict[str, object] | None = None
    cache_control: CacheControl | None = None


class ToolResultBlock(Request):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Text | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Turn(Request):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Text | Annotated[list[Block], Field(max_length=2048)]


class OwnTool(Request):
    """A function that the model may call; tools that run on Anthropic's machines are not here."""

    name: FunctionName
    type: Literal["custom"] | None = None
    description: Text | None = None
    input_schema: dict[str, object]
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Request):
    """Whether and which function has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Request):
    """JSON by a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, object] = Field(alias="schema")


class OutputConfig(Request):
    """What words must look like."""

    format: OutputFormat | None = None


class Thinking(Request):
    """Hidden reasoning, which is not here."""

    type: Literal["disabled"]


class Metadata(Request):
    """Whom a request is for: turns in the queue are by it."""

    user_id: Text | None = None


class CountRequest(Body):
    """``POST /v1/messages/count_tokens``."""

    model: Text
    messages: Annotated[list[Turn], Field(min_length=1, max_length=2048)]
    system: Text | list[TextBlock] | None = None
    tools: Annotated[list[OwnTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class MessagesRequest(CountRequest):
    """``POST /v1/messages``. ``service_tier`` has no effect here, as clients expect."""

    max_tokens: Count
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


def chat_of(body: CountRequest) -> chats.ChatRequest:
    """The request as a chat's. `ApiError`; pydantic's ``ValidationError`` for what no chat has."""
    turns: list[chats.Message] = []
    if body.system:
        words = body.system if isinstance(body.system, str) else "\n".join(block.text for block in body.system)
        turns.append(chats.Message(role="system", content=words))
    for place, turn in enumerate(body.messages):
        turns += _turns(turn, f"messages.{place}")
    fields: dict[str, object] = {"model": body.model, "messages": turns}
    if body.tools:
        choice = body.tool_choice or ToolChoice(type="auto")
        if choice.type == "tool" and choice.name is None:
            raise bad_parameter("tool_choice", "tool needs a name")
        fields["tools"] = [_tool(tool) for tool in body.tools]
        fields["tool_choice"] = _choice(choice)
        fields["parallel_tool_calls"] = False if choice.disable_parallel_tool_use else None
    elif body.tool_choice is not None and body.tool_choice.type in ("any", "tool"):
        raise bad_parameter("tool_choice", "there are no tools to choose from")
    wanted = body.output_format or (body.output_config.format if body.output_config else None)
    if wanted is not None:
        named = forms.NamedSchema.model_validate({"name": "answer", "schema": wanted.schema_})
        fields["response_format"] = forms.JsonSchema(type="json_schema", json_schema=named)
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "user": body.metadata.user_id if body.metadata else None,
        }
    return chats.ChatRequest.model_validate(fields)


def _turns(turn: Turn, where: str) -> list[chats.Message]:
    """A turn as the chat's: results of tools are turns of their own, before the words that came with them."""
    if isinstance(turn.content, str):
        return [chats.Message(role=turn.role, content=turn.content)]
    parts: list[chats.Part] = []
    calls: list[chats.PastToolCall] = []
    results: list[chats.Message] = []
    for block in turn.content:
        if isinstance(block, ToolUseBlock) and turn.role == "assistant":
            called = chats.CalledFunction(name=block.name, arguments=json.dumps(block.input))
            calls.append(chats.PastToolCall(id=block.id, function=called))
        elif isinstance(block, ToolResultBlock) and turn.role == "user":
            results.append(_result(block))
        elif isinstance(block, TextBlock | ImageBlock):
            parts.append(_part(block))
        else:
            raise bad_parameter("messages", f"{where}: a {turn.role}'s turn has no {block.type}")
    if parts or calls or not results:
        content = None if calls and not parts else parts or ""
        return [*results, chats.Message(role=turn.role, content=content, tool_calls=calls or None)]
    return results


def _result(block: ToolResultBlock) -> chats.Message:
    given = block.content or ""
    content: str | list[chats.Part] = given if isinstance(given, str) else [_part(part) for part in given]
    return chats.Message(role="tool", content=content, tool_call_id=block.tool_use_id)


def _part(block: TextBlock | ImageBlock) -> chats.Part:
    if isinstance(block, TextBlock):
        return chats.TextPart(type="text", text=block.text)
    source = block.source
    url = source.get("url")
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    return chats.OtherPart.model_validate({"type": "image_url", "image_url": {"url": url}})


def _tool(tool: OwnTool) -> chats.Tool:
    function = chats.FunctionSpec(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return chats.Tool(type="function", function=function)


def _choice(choice: ToolChoice) -> object:
    if choice.type == "tool" and choice.name is not None:
        return chats.NamedTool(type="function", function=chats.FunctionChoice(name=choice.name))
    return "required" if choice.type == "any" else choice.type
