"""How replies go out: whole, or as server-sent events; what runs for a client that goes is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from veil.gateway.answers import Answers


class Gone(Exception):
    """The client closed the connection."""


async def whole(request: Request, answers: Answers, reply: Callable[[], Awaitable[BaseModel]]) -> Response:
    """The reply when every answer is over."""
    async with answers:
        made = await unless_gone(request, reply())
        return JSONResponse(made.model_dump(mode="json", by_alias=True))


async def streamed(request: Request, answers: Answers, events: AsyncIterator[bytes]) -> Response:
    """A stream once its first event is there: until then an error still has a status of its own."""
    try:
        first = await unless_gone(request, anext(events))
    except BaseException:
        answers.cancel()
        raise
    return _EventStream(first, events, answers)


class _EventStream(StreamingResponse):
    """Server-sent events; when the client goes, what runs for it is cancelled."""

    def __init__(self, first: bytes, events: AsyncIterator[bytes], answers: Answers) -> None:
        async def stream() -> AsyncIterator[bytes]:
            yield first
            async for event in events:
                yield event

        super().__init__(stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._answers:
            await super().__call__(scope, receive, send)


T = TypeVar("T")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def drained(answers: Answers) -> None:
    """Wait until it is over."""
    async for _ in answers:
        pass


def owner_of(request: Request) -> str:
    """Whose key a request came with, by its digest; empty where no key is asked for."""
    return str(request.scope.get("veil.owner", ""))


def caller_of(request: Request, user: str | None) -> str:
    """Whom a request is from, for turns in the queue: its key and the user that it names, or the program and the page."""
    key = owner_of(request)[:16]
    if user:
        return f"{key} user {user[:64]}"
    host = request.client.host if request.client else ""
    return f"{key} {host} {request.headers.get('user-agent', '')[:200]} {request.headers.get('x-veil-tab', '')[:64]}"
