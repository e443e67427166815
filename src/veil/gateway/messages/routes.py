"""The routes of `/v1/messages`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from veil.gateway import incoming as chats
from veil.gateway.failures import bad_parameter
from veil.gateway.messages.events import MessagesWriter
from veil.gateway.messages.incoming import CountRequest, MessagesRequest, chat_of
from veil.gateway.messages.objects import CountedTokens, MessageReply, MessagesError
from veil.gateway.prompts import chat_prompt, tools_of
from veil.gateway.sending import streamed, whole
from veil.gateway.statuses import ERRORS

if TYPE_CHECKING:
    from veil.gateway.app import Gateway

_ERRORS = {status: said | {"model": MessagesError} for status, said in ERRORS.items()}


def add_to(app: FastAPI, gateway: Gateway) -> None:
    """The routes."""
    from veil.gateway.app import chat_answers

    @app.post("/v1/messages", response_model=MessageReply, responses=_ERRORS)
    async def create(body: MessagesRequest, request: Request) -> Response:
        """The model's turn, whole or as events, in Anthropic's shape; errors too."""
        chat = _chat(body)
        answers, use, served = await chat_answers(gateway, chat, request, stop=tuple(body.stop_sequences or ()))
        writer = MessagesWriter(served, answers, use)
        if body.stream:
            return await streamed(request, answers, writer.events())
        return await whole(request, answers, writer.whole)

    @app.post("/v1/messages/count_tokens", responses=_ERRORS)
    async def count(body: CountRequest) -> CountedTokens:
        """How many tokens a request's prompt has."""
        chat = _chat(body)
        served = gateway.models.need(chat.model, "text").served
        use = tools_of(chat.tools, chat.tool_choice, served, chat.parallel_tool_calls)
        return CountedTokens(input_tokens=len(await asyncio.to_thread(chat_prompt, chat.messages, served, use)))


def _chat(body: CountRequest) -> chats.ChatRequest:
    try:
        return chat_of(body)
    except ValidationError as error:
        raise bad_parameter("messages", str(error.errors()[0]["msg"])) from None
