"""The objects that `/v1/responses` answers with."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import Field

from veil.gateway.account import Account
from veil.gateway.replies import veil_usage_of
from veil.gateway.responses.incoming import ResponseRequest
from veil.gateway.schemas import CachedTokens, Reply, VeilUsage
from veil.gateway.served import ServedModel


class ReasoningTokens(Reply):
    """Tokens of hidden reasoning; here there are none."""

    reasoning_tokens: int = 0


class ResponseUsage(Reply):
    """Tokens, as this API counts them, and veil's own counters."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens = ReasoningTokens()
    total_tokens: int
    veil: VeilUsage | None = None


class OutputText(Reply):
    """Words."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[object] = Field(default_factory=list)
    logprobs: list[object] = Field(default_factory=list)


Fields = dict[str, object]  # the replies below have a field `object`, which hides the type in them
Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputMessage(Reply):
    """A turn in words."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class OutputCall(Reply):
    """A call."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class Why(Reply):
    """Why a response is not complete."""

    reason: str


class Failure(Reply):
    """Why there is none."""

    code: str
    message: str


class ResponseReply(Reply):
    """A response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int = Field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: Failure | None = None
    incomplete_details: Why | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: Fields
    tool_choice: str | Fields
    tools: list[Fields]
    truncation: Literal["disabled"] = "disabled"
    store: bool = True
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class Deleted(Reply):
    """A response that is forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


def begun(body: ResponseRequest, id: str, served: ServedModel) -> ResponseReply:
    """A response before its first word."""
    choice = body.tool_choice or "auto"
    shown = body.text.model_dump(mode="json", by_alias=True, exclude_none=True) if body.text else {}
    return ResponseReply(
        id=id,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=served.name,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        temperature=body.temperature,
        top_p=body.top_p,
        text={"format": {"type": "text"}} | shown,
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(mode="json"),
        tools=[{"strict": None, "parameters": None} | tool.model_dump(mode="json") for tool in body.tools or []],
        store=body.store is not False,
        user=body.user,
        metadata=body.metadata or {},
    )


def usage_of(served: ServedModel, account: Account) -> ResponseUsage:
    """What a response cost."""
    return ResponseUsage(
        input_tokens=account.prompt_tokens,
        input_tokens_details=CachedTokens(cached_tokens=account.cached_tokens),
        output_tokens=account.new_tokens,
        total_tokens=account.prompt_tokens + account.new_tokens,
        veil=veil_usage_of(served, account),
    )
