"""One message as it grows: the object at its end, and the events on the way there."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator

from veil.gateway.account import End
from veil.gateway.answers import Answers
from veil.gateway.calls import Call
from veil.gateway.failures import from_error
from veil.gateway.messages.objects import CallBlock, MessageReply, MessagesUsage, StopReason, WordsBlock
from veil.gateway.replies import veil_usage_of
from veil.gateway.served import ServedModel
from veil.gateway.steps import Step, steps
from veil.gateway.tools import Use

Told = tuple[str, dict[str, object]]


class MessagesWriter:
    """Writes one message."""

    def __init__(self, served: ServedModel, answers: Answers, use: Use | None) -> None:
        self._served, self._answers, self._use = served, answers, use
        self._reply = MessageReply(id=f"msg_{secrets.token_hex(12)}", model=served.name, usage=self._usage())
        self._open = False
        self._arguments = ""

    async def whole(self) -> MessageReply:
        """The message when it is over. `ApiError`."""
        async for step in steps(self._answers, self._use):
            self._take(step)
        return self._reply

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. An error before the first is raised as `ApiError`, a later one becomes an event."""
        begun = False
        try:
            async for step in steps(self._answers, self._use):
                if not begun:
                    begun = True
                    self._reply.usage = self._usage()
                    yield _event("message_start", message=self._reply.model_dump(mode="json"))
                    yield _event("ping")
                for kind, fields in self._take(step):
                    yield _event(kind, **fields)
        except Exception as error:
            known = from_error(error)
            if not begun:
                raise known from None
            yield _event("error", error=known.body_at("/v1/messages")["error"])

    def _take(self, step: Step) -> list[Told]:
        """Add what came; the events that tell of it."""
        told: list[Told] = []
        if step.words:
            told += self._words(step.words)
        for call in step.calls:
            told += self._call(call)
        if step.end is not None:
            told += self._close()
            reason = _reason(step.end)
            self._reply.stop_reason = reason
            self._reply.stop_sequence = step.end.text if reason == "stop_sequence" else None
            self._reply.usage = self._usage()
            delta = {"stop_reason": reason, "stop_sequence": self._reply.stop_sequence}
            told.append(("message_delta", {"delta": delta, "usage": self._reply.usage.model_dump(mode="json")}))
            told.append(("message_stop", {}))
        return told

    def _words(self, words: str) -> list[Told]:
        told: list[Told] = []
        content = self._reply.content
        if not (self._open and isinstance(content[-1], WordsBlock)):
            told += self._close()
            content.append(WordsBlock(text=""))
            told += self._begin()
        block = content[-1]
        assert isinstance(block, WordsBlock)
        block.text += words
        return [*told, self._delta({"type": "text_delta", "text": words})]

    def _call(self, call: Call) -> list[Told]:
        told: list[Told] = []
        if call.id is not None and call.name is not None:
            told += self._close()
            self._reply.content.append(CallBlock(id=call.id.replace("call_", "toolu_"), name=call.name))
            told += self._begin()
        self._arguments += call.arguments
        if call.arguments:
            told.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        return told

    def _begin(self) -> list[Told]:
        self._open, self._arguments = True, ""
        place = len(self._reply.content) - 1
        return [("content_block_start", {"index": place, "content_block": self._reply.content[-1].model_dump(mode="json")})]

    def _close(self) -> list[Told]:
        """End the block that is being written, if one is."""
        if not self._open:
            return []
        self._open = False
        block = self._reply.content[-1]
        if isinstance(block, CallBlock):
            try:
                block.input = json.loads(self._arguments or "{}")
            except ValueError:  # cut by max_tokens
                block.input = {}
        return [("content_block_stop", {"index": len(self._reply.content) - 1})]

    def _delta(self, delta: dict[str, object]) -> Told:
        return "content_block_delta", {"index": len(self._reply.content) - 1, "delta": delta}

    def _usage(self) -> MessagesUsage:
        account = self._answers.account
        return MessagesUsage(
            input_tokens=account.prompt_tokens - account.cached_tokens,
            output_tokens=account.new_tokens,
            cache_read_input_tokens=account.cached_tokens,
            veil=veil_usage_of(self._served, account),
        )


def _reason(end: End) -> StopReason:
    if end.text is not None and end.reason == "stop":
        return "stop_sequence"
    reasons: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    return reasons[end.reason]


def _event(kind: str, **fields: object) -> bytes:
    data = json.dumps({"type": kind} | fields, ensure_ascii=False, allow_nan=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()
