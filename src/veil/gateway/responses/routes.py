"""The routes of `/v1/responses`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from veil.gateway import incoming as chats
from veil.gateway.failures import bad_parameter
from veil.gateway.responses.events import ResponsesWriter
from veil.gateway.responses.incoming import ResponseRequest, chat_of, messages_of
from veil.gateway.responses.kept import KeptResponses
from veil.gateway.responses.objects import Deleted, OutputCall, OutputMessage, ResponseReply, begun
from veil.gateway.sending import owner_of, streamed, whole
from veil.gateway.statuses import ERRORS

if TYPE_CHECKING:
    from veil.gateway.app import Gateway


def add_to(app: FastAPI, gateway: Gateway) -> None:
    """The routes; what they keep ends with the application."""
    from veil.gateway.app import chat_answers

    kept = KeptResponses()

    @app.post("/v1/responses", response_model=ResponseReply, responses=ERRORS)
    async def respond(body: ResponseRequest, request: Request) -> Response:
        """The model's next turn, whole or as events; it may go on from an earlier one that is still in memory."""
        owner = owner_of(request)
        before: list[chats.Message] = []
        if body.previous_response_id is not None:
            before = kept.find(body.previous_response_id, owner, "previous_response_id").turns
        try:
            chat, said = chat_of(body, before), [*before, *messages_of(body.input)]
        except ValidationError as error:
            raise bad_parameter("input", str(error.errors()[0]["msg"])) from None
        answers, use, served = await chat_answers(gateway, chat, request)
        reply = begun(body, f"resp_{secrets.token_hex(16)}", served)

        def done(made: ResponseReply) -> None:
            if body.store is not False:
                kept.keep(made.id, made.model_dump(mode="json"), [*said, *_turns(made)], owner)

        writer = ResponsesWriter(reply, served, answers, use, done)
        if body.stream:
            return await streamed(request, answers, writer.events())
        return await whole(request, answers, writer.whole)

    @app.get("/v1/responses/{id}", response_model=ResponseReply, responses=ERRORS)
    async def again(id: str, request: Request) -> Response:
        """A response that is still in memory."""
        return JSONResponse(kept.find(id, owner_of(request)).body)

    @app.delete("/v1/responses/{id}", responses=ERRORS)
    async def forget(id: str, request: Request) -> Deleted:
        """Forget a response."""
        kept.forget(id, owner_of(request))
        return Deleted(id=id)


def _turns(reply: ResponseReply) -> list[chats.Message]:
    """A response as the assistant's turn."""
    words = "".join(item.content[0].text for item in reply.output if isinstance(item, OutputMessage))
    calls = [item for item in reply.output if isinstance(item, OutputCall)]
    made: dict[str, object] = {"role": "assistant", "content": words or (None if calls else "")}
    if calls:
        made["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return [chats.Message.model_validate(made)]
