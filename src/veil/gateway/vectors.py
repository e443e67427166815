"""Vectors of texts and what is made of them: `/v1/embeddings`, and `/v1/rerank` by their cosine."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import FastAPI, Request
from pydantic import Field

from veil.gateway import bodies, incoming, schemas
from veil.gateway.answers import vectors
from veil.gateway.bodies import Text
from veil.gateway.failures import ApiError, bad_parameter
from veil.gateway.models import Offered
from veil.gateway.prompts import embedding_inputs
from veil.gateway.replies import veil_usage_of
from veil.gateway.sending import caller_of, drained, unless_gone
from veil.gateway.statuses import ERRORS

if TYPE_CHECKING:
    from veil.gateway.app import Gateway


class RerankDocument(bodies.Request):
    """A document as an object."""

    text: Text


class RerankRequest(bodies.Body):
    """``POST /v1/rerank``: documents to be ordered by how near they are to a query."""

    model: Text
    query: Text
    documents: Annotated[list[Text | RerankDocument], Field(min_length=1, max_length=256)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    user: Text | None = None


class RankedDocument(schemas.Reply):
    """A document again."""

    text: str


class Ranked(schemas.Reply):
    """A document's place in the request, and the cosine of its vector and the query's."""

    index: int
    relevance_score: float
    document: RankedDocument | None = Field(default=None, exclude_if=lambda value: value is None)


class RerankReply(schemas.Reply):
    """``POST /v1/rerank``: the nearest first."""

    id: str
    model: str
    results: list[Ranked]
    usage: schemas.EmbeddingUsage


def add_to(app: FastAPI, gateway: Gateway) -> None:
    """The routes."""

    @app.post("/v1/embeddings", responses=ERRORS)
    async def embeddings(body: incoming.EmbeddingRequest, request: Request) -> schemas.EmbeddingReply:
        """Vectors of texts: the mean of the last hidden states, of length one; an encoder's, or a text model's."""
        one = _able(gateway, body.model)
        inputs = await asyncio.to_thread(embedding_inputs, body, one.served)
        found, usage = await _found(gateway, one, inputs, request, body.user)
        encode: Callable[[list[float]], str | list[float]] = _base64 if body.encoding_format == "base64" else list
        data = [schemas.Embedding(index=index, embedding=encode(vector)) for index, vector in enumerate(found)]
        return schemas.EmbeddingReply(data=data, model=one.served.name, usage=usage)

    @app.post("/v2/rerank", include_in_schema=False)
    @app.post("/rerank", include_in_schema=False)
    @app.post("/v1/rerank", responses=ERRORS)
    async def rerank(body: RerankRequest, request: Request) -> RerankReply:
        """Documents in the order of their nearness to a query: the cosine of the vectors that `/v1/embeddings` makes."""
        one = _able(gateway, body.model)
        texts = [document if isinstance(document, str) else document.text for document in body.documents]
        inputs = await asyncio.to_thread(_ids, one, body.query, texts)
        found, usage = await _found(gateway, one, inputs, request, body.user)
        scores = np.asarray(found[1:]) @ np.asarray(found[0])
        order = sorted(range(len(texts)), key=lambda place: -scores[place])[: body.top_n]
        results = [
            Ranked(
                index=place,
                relevance_score=float(scores[place]),
                document=RankedDocument(text=texts[place]) if body.return_documents else None,
            )
            for place in order
        ]
        return RerankReply(id=f"rerank-{secrets.token_hex(12)}", model=one.served.name, results=results, usage=usage)


def _able(gateway: Gateway, name: str) -> Offered:
    """The model, if it makes vectors."""
    one = gateway.models.find(name)
    if one.served.two_sided:
        raise ApiError(400, f"{one.served.name} makes no vectors here", param="model", code="model_not_supported")
    return one


def _ids(one: Offered, query: str, documents: list[str]) -> list[list[int]]:
    if not query:
        raise bad_parameter("query", "it is empty")
    return [one.served.text_ids(query, "query"), *(one.served.text_ids(text, "documents") for text in documents)]


async def _found(
    gateway: Gateway, one: Offered, inputs: list[list[int]], request: Request, user: str | None
) -> tuple[list[list[float]], schemas.EmbeddingUsage]:
    """The vectors, and what they cost."""
    found: list[list[float]] = []
    async with vectors(gateway.queue, caller_of(request, user), one.generator, inputs, found) as answers:
        await unless_gone(request, drained(answers))
    account = answers.account
    usage = schemas.EmbeddingUsage(
        prompt_tokens=account.prompt_tokens,
        total_tokens=account.prompt_tokens,
        veil=veil_usage_of(one.served, account),
    )
    return found, usage


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
