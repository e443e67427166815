"""One response as it grows: the object at its end, and the events on the way there."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable

from pydantic import BaseModel

from veil.gateway.answers import Answers
from veil.gateway.calls import Call
from veil.gateway.failures import ApiError, from_error
from veil.gateway.responses.objects import (
    Failure,
    OutputCall,
    OutputMessage,
    OutputText,
    ResponseReply,
    Status,
    Why,
    usage_of,
)
from veil.gateway.served import ServedModel
from veil.gateway.steps import Step, steps
from veil.gateway.tools import Use

Fields = dict[str, object]


class ResponsesWriter:
    """Writes one response. ``done`` is called with it when it is complete, before anybody is told so."""

    def __init__(
        self,
        reply: ResponseReply,
        served: ServedModel,
        answers: Answers,
        use: Use | None,
        done: Callable[[ResponseReply], None],
    ) -> None:
        self._reply, self._served, self._answers, self._use, self._done = reply, served, answers, use, done
        self._count = 0

    async def whole(self) -> ResponseReply:
        """The response when it is over. `ApiError`."""
        async for step in steps(self._answers, self._use):
            for _ in self._take(step):
                pass
        return self._reply

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. An error before the first is raised as `ApiError`, a later one becomes an event."""
        begun = False
        try:
            async for step in steps(self._answers, self._use):
                if not begun:
                    begun = True
                    yield self._event("response.created", response=self._reply)
                    yield self._event("response.in_progress", response=self._reply)
                for kind, fields in self._take(step):
                    yield self._event(kind, **fields)
        except Exception as error:
            known = from_error(error)
            if not begun:
                raise known from None
            yield self._failed(known)
            return
        yield self._event(f"response.{self._reply.status}", response=self._reply)

    def _take(self, step: Step) -> list[tuple[str, Fields]]:
        """Add what came; the events that tell of it."""
        told: list[tuple[str, Fields]] = []
        if step.words:
            told += self._words(step.words)
        for call in step.calls:
            told += self._call(call)
        if step.end is not None:
            if not self._reply.output:  # an empty answer is a message without words
                told += self._words("")
            cut = step.end.reason == "length"
            told += self._close("incomplete" if cut else "completed")
            self._reply.status = "incomplete" if cut else "completed"
            self._reply.incomplete_details = Why(reason="max_output_tokens") if cut else None
            self._reply.completed_at = None if cut else int(time.time())
            self._reply.usage = usage_of(self._served, self._answers.account)
            self._done(self._reply)
        return told

    def _words(self, words: str) -> list[tuple[str, Fields]]:
        told: list[tuple[str, Fields]] = []
        last = self._open
        if not isinstance(last, OutputMessage):
            told += self._close("completed")
            last = OutputMessage(id=f"msg_{secrets.token_hex(12)}", status="in_progress", content=[])
            self._reply.output.append(last)
            told.append(("response.output_item.added", {"item": last.model_copy(deep=True)} | self._at))
            last.content.append(OutputText(text=""))
            told.append(("response.content_part.added", {"part": OutputText(text="")} | self._part))
        last.content[0].text += words
        if words:
            told.append(("response.output_text.delta", {"delta": words, "logprobs": []} | self._part))
        return told

    def _call(self, call: Call) -> list[tuple[str, Fields]]:
        told: list[tuple[str, Fields]] = []
        if call.id is not None and call.name is not None:
            told += self._close("completed")
            item = OutputCall(
                id=f"fc_{secrets.token_hex(12)}", call_id=call.id, name=call.name, arguments="", status="in_progress"
            )
            self._reply.output.append(item)
            told.append(("response.output_item.added", {"item": item.model_copy()} | self._at))
        last = self._reply.output[-1]
        assert isinstance(last, OutputCall)
        last.arguments += call.arguments
        if call.arguments:
            fields: Fields = {"item_id": last.id, "delta": call.arguments}
            told.append(("response.function_call_arguments.delta", fields | self._at))
        return told

    @property
    def _open(self) -> OutputMessage | OutputCall | None:
        """The item that is being written."""
        last = self._reply.output[-1] if self._reply.output else None
        return last if last is not None and last.status == "in_progress" else None

    @property
    def _at(self) -> Fields:
        return {"output_index": len(self._reply.output) - 1}

    @property
    def _part(self) -> Fields:
        return {"item_id": self._reply.output[-1].id, "content_index": 0} | self._at

    def _close(self, status: Status) -> list[tuple[str, Fields]]:
        """End the item that is being written, if one is."""
        last = self._open
        if last is None:
            return []
        last.status = status
        told: list[tuple[str, Fields]] = []
        if isinstance(last, OutputMessage):
            text = last.content[0]
            told.append(("response.output_text.done", {"text": text.text, "logprobs": []} | self._part))
            told.append(("response.content_part.done", {"part": text} | self._part))
        else:
            fields: Fields = {"item_id": last.id, "name": last.name, "arguments": last.arguments}
            told.append(("response.function_call_arguments.done", fields | self._at))
        return [*told, ("response.output_item.done", {"item": last} | self._at)]

    def _failed(self, error: ApiError) -> bytes:
        self._reply.status = "failed"
        self._reply.error = Failure(code=error.code or "server_error", message=error.message)
        return self._event("response.failed", response=self._reply)

    def _event(self, kind: str, **fields: object) -> bytes:
        plain = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in fields.items()
        }
        data = {"type": kind, "sequence_number": self._count} | plain
        self._count += 1
        return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()
