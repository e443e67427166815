"""Prefill while typing: rows of words that are finished go up before their message is sent, where that was asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Request
from pydantic import Field

from veil.gateway import incoming, schemas
from veil.gateway.answers import Answers
from veil.gateway.bodies import Body, Text
from veil.gateway.failures import ApiError, bad_parameter
from veil.gateway.pictures import PicturePrompt
from veil.gateway.prompts import chat_prompt, tools_of
from veil.gateway.sending import caller_of, drained, owner_of, unless_gone
from veil.gateway.served import ServedModel
from veil.gateway.statuses import ERRORS

if TYPE_CHECKING:
    from veil.gateway.app import Gateway

_ENDINGS = ("", " a", "\n\nb")
"""Ways in which a text may go on after a word and the white space behind it; what begins all of them changes no more."""

_ROWS_LEFT = 24
"""Prompt rows that are made for what is still to come: a last word, the end of the turn, the beginning of the answer."""


class PrefillRequest(Body):
    """``POST /veil/prefill``: a chat whose last message is still being written.

    It ends after a finished word, without the white space behind it.
    """

    model: Text
    messages: Annotated[list[incoming.Message], Field(min_length=1, max_length=2048)]
    tools: Annotated[list[incoming.Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    new_tokens: Annotated[int, Field(ge=0, le=1 << 16)] = 256


class Prefilled(schemas.Reply):
    """How many tokens of the prompt stay as they are, and how many went up for this; with padding in whole steps."""

    tokens: int
    sent: int


def add_to(app: FastAPI, gateway: Gateway) -> None:
    """The route."""

    @app.post("/veil/prefill", responses=ERRORS)
    async def prefill(body: PrefillRequest, request: Request) -> Prefilled:
        """Compute a prompt's beginning while the rest is written, with `--eager-prompt`; an answer then begins at once."""
        if not gateway.settings.eager:
            raise ApiError(
                403, "prompts are sent when they are finished; start the gateway with --eager-prompt", code="not_eager"
            )
        one = gateway.models.need(body.model, "text")
        served, owner, sent = one.served, owner_of(request), [0]
        ids = await asyncio.to_thread(settled_ids, body, served)

        def work(answers: Answers) -> None:
            adapter = served.adapter_of(body.model)
            sent[0] = one.generator.begin(ids, answers.account, answers.job.cancelled, owner, adapter)
            served.hybrid.expect(prompt_rows=_ROWS_LEFT, new_tokens=min(body.new_tokens, served.context_length))

        async with Answers(gateway.queue, caller_of(request, None), work, served.in_vain) as answers:
            await unless_gone(request, drained(answers))
        return Prefilled(tokens=len(ids), sent=sent[0])


def settled_ids(body: PrefillRequest, served: ServedModel) -> list[int]:
    """The first token ids of a chat that stay as they are, however its last message goes on. `ApiError`."""
    padding = served.hybrid.padding
    if served.sent_whole or (padding is not None and padding.powers):
        raise bad_parameter("model", f"prompts of {served.name} are sent whole", "unsupported_value")
    *before, last = body.messages
    if last.role != "user" or not isinstance(last.content, str):
        raise bad_parameter("messages", "the last one has to be a user's, and a text")
    use = tools_of(body.tools, None, served)
    found = []
    for ending in _ENDINGS:
        going = [*before, last.model_copy(update={"content": last.content + ending})]
        found.append(chat_prompt(going, served, use, body.chat_template_kwargs))
    if isinstance(found[0], PicturePrompt):
        raise bad_parameter("messages", "a chat with pictures is sent whole", "unsupported_value")
    same = next((place for place, tokens in enumerate(zip(*found, strict=False)) if len(set(tokens)) > 1), 0)
    return found[0][:same]
