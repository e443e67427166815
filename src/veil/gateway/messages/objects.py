"""The objects that `/v1/messages` answers with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from veil.gateway.schemas import Reply, VeilUsage


class MessagesUsage(Reply):
    """Tokens, as this API counts them: those of the prompt that were not sent again are apart."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    veil: VeilUsage | None = None


class WordsBlock(Reply):
    """Words."""

    type: Literal["text"] = "text"
    text: str
    citations: None = None


class CallBlock(Reply):
    """A call."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, object] = Field(default_factory=dict)


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageReply(Reply):
    """The model's turn."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[WordsBlock | CallBlock] = Field(default_factory=list)
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessagesUsage


class MessagesErrorBody(Reply):
    """What went wrong."""

    type: str
    message: str


class MessagesError(Reply):
    """Every error, in this API's shape."""

    type: Literal["error"] = "error"
    error: MessagesErrorBody
    request_id: str | None = None


class CountedTokens(Reply):
    """``POST /v1/messages/count_tokens``."""

    input_tokens: int
