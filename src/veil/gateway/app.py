"""The gateway as an ASGI application: routes, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from veil import __version__
from veil.gateway import incoming, page, schemas
from veil.gateway.answers import Answers, texts, vectors
from veil.gateway.failures import ApiError, unknown_model
from veil.gateway.generation import Generator
from veil.gateway.guard import Access, Guard
from veil.gateway.line import Line
from veil.gateway.replies import Replies, veil_usage_of
from veil.gateway.requests import chat_prompt, completion_prompts, embedding_inputs, sampling_of, tokens_asked, tools_of
from veil.gateway.served import ServedModel
from veil.gateway.tokens import shown
from veil.gateway.tools import Use

_EXPECT_EVERY_S = 0.5
_STATUSES = {
    400: "A parameter that cannot be used",
    401: "The API key is missing or wrong",
    403: "A Host or an Origin that is not the gateway's",
    404: "A model that is not served",
    413: "A request that is too large",
    429: "Too many requests wait",
    500: "The generation failed",
    502: "The server refused or sent what it should not",
    503: "The server cannot be reached",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorReply, "description": text} for status, text in _STATUSES.items()
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much the gateway does at once: generations that take turns, and requests that wait for one.

    ``answer_tokens`` is the most that an answer gets whose request has no limit.
    """

    at_once: int = 4
    most_waiting: int = 32
    answer_tokens: int = 2048


class Gateway:
    """What the routes share: the model, its generator, the line, and when a prompt was last announced."""

    def __init__(self, served: ServedModel, settings: Settings) -> None:
        self.served = served
        self.settings = settings
        self.created = int(time.time())
        self.generator = Generator(served)
        self.line = Line(settings.at_once, settings.most_waiting)
        self._expected = 0.0

    def card(self) -> schemas.ModelCard:
        """The model as `GET /v1/models` lists it."""
        served = self.served
        return schemas.ModelCard(
            id=served.name, created=self.created, context_length=served.context_length, kind=served.kind
        )

    def need_model(self, name: str, kind: str) -> None:
        """`ApiError` unless this model is served and of this kind."""
        if name != self.served.name:
            raise unknown_model(name, self.served.name)
        self.served.need(kind)

    def expect(self, characters: int, new_tokens: int) -> bool:
        """Have rows made for a prompt that is being written; False if that was said a moment ago."""
        now = time.monotonic()
        if now - self._expected < _EXPECT_EVERY_S:
            return False
        self._expected = now
        self.served.expect(characters, new_tokens)
        return True

    def status(self) -> schemas.Status:
        """What the page shows."""
        served, ready, totals = self.served, self.served.hybrid.rows_ready, self.generator.totals
        counted = ("rows", "rows_made", "bytes_up_ahead", "bytes_down_ahead", "bytes_up_online", "bytes_down_online")
        return schemas.Status(
            version=__version__,
            model=served.name,
            kind=served.kind,
            context_length=served.context_length,
            mode=served.mode,
            server=served.server,
            security_bits=served.security_bits,
            rows_ready=ready.tokens,
            prompt_rows_ready=ready.prompt_rows,
            running=self.line.running,
            waiting=self.line.waiting,
            sent=served.sent_sample.hex(),
            totals={name: getattr(totals, name) for name in counted},
        )


def build_app(served: ServedModel, access: Access | None = None, settings: Settings | None = None) -> FastAPI:
    """The application. Its life ends with what runs; ``app.state.gateway`` is the `Gateway`."""
    gateway = Gateway(served, settings or Settings())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.hybrid.stop_padding(False)
        yield
        served.hybrid.stop_padding()
        await asyncio.to_thread(gateway.line.close)

    app = FastAPI(
        title="veil gateway",
        version=__version__,
        description="An OpenAI-compatible endpoint for a model that runs encrypted on somebody else's machine.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    _add_errors(app)
    _add_openai(app, gateway)
    _add_own(app, gateway)
    _add_tokens(app, gateway)
    page.add_to(app)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, access=access or Access())
    return app


def _add_openai(app: FastAPI, gateway: Gateway) -> None:
    served, generator, line = gateway.served, gateway.generator, gateway.line

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> schemas.ModelList:
        """The model that is served."""
        return schemas.ModelList(data=[gateway.card()])

    @app.get("/v1/models/{model:path}", responses=_ERRORS)
    async def model(model: str) -> schemas.ModelCard:
        """One model."""
        if model != served.name:
            raise unknown_model(model, served.name)
        return gateway.card()

    @app.post("/v1/chat/completions", response_model=schemas.ChatReply, responses=_ERRORS)
    async def chat(body: incoming.ChatRequest, request: Request) -> Response:
        """The model's turn in a chat, whole or as server-sent events."""
        gateway.need_model(body.model, "text")
        use = await asyncio.to_thread(tools_of, body.tools, body.tool_choice, served, body.parallel_tool_calls)
        prompt = await asyncio.to_thread(chat_prompt, body.messages, served, use, body.chat_template_kwargs)
        sampling = await asyncio.to_thread(sampling_of, body, served, gateway.settings.answer_tokens, use)
        answers = texts(line, _caller(request, body.user), generator, [prompt], body.n or 1, sampling)
        return await _reply(request, answers, _replies(served, answers, body, use, chat=True), stream=bool(body.stream))

    @app.post("/v1/completions", response_model=schemas.CompletionReply, responses=_ERRORS)
    async def completions(body: incoming.CompletionRequest, request: Request) -> Response:
        """A text's continuation, whole or as server-sent events."""
        gateway.need_model(body.model, "text")
        sampling = await asyncio.to_thread(sampling_of, body, served, gateway.settings.answer_tokens)
        prompts = await asyncio.to_thread(completion_prompts, body, served)
        answers = texts(line, _caller(request, body.user), generator, prompts, body.n or 1, sampling)
        return await _reply(request, answers, _replies(served, answers, body, chat=False), stream=bool(body.stream))

    @app.post("/v1/embeddings", responses=_ERRORS)
    async def embeddings(body: incoming.EmbeddingRequest, request: Request) -> schemas.EmbeddingReply:
        """Vectors of texts, from an encoder."""
        gateway.need_model(body.model, "encoder")
        inputs = await asyncio.to_thread(embedding_inputs, body, served)
        found: list[list[float]] = []
        async with vectors(line, _caller(request, body.user), generator, inputs, found) as answers:
            await _unless_gone(request, _drained(answers))
        encode: Callable[[list[float]], Any] = _base64 if body.encoding_format == "base64" else list
        data = [schemas.Embedding(index=index, embedding=encode(vector)) for index, vector in enumerate(found)]
        account = answers.account
        usage = schemas.EmbeddingUsage(
            prompt_tokens=account.prompt_tokens,
            total_tokens=account.prompt_tokens,
            veil=veil_usage_of(served, account),
        )
        return schemas.EmbeddingReply(data=data, model=served.name, usage=usage)


def _add_own(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/veil/status", responses=_ERRORS)
    async def status() -> schemas.Status:
        """Rows that are ready, what waits, and what was sent."""
        return gateway.status()

    @app.post("/veil/expect", status_code=202, responses=_ERRORS)
    async def expect(body: incoming.ExpectRequest) -> dict[str, bool]:
        """A prompt is being written: rows are made for it now. Says whether it was heeded; twice a second is enough."""
        return {"heeded": gateway.expect(body.characters, body.new_tokens)}


def _add_tokens(app: FastAPI, gateway: Gateway) -> None:
    served = gateway.served

    @app.post("/tokenize", responses=_ERRORS)
    async def tokenize(body: incoming.TokenizeRequest) -> schemas.Tokens:
        """A text or a chat as token ids, as vLLM has it."""
        gateway.need_model(body.model or served.name, served.kind)
        ids = await asyncio.to_thread(tokens_asked, body, served)
        names = [shown(served.token_bytes.named(token)) for token in ids] if body.return_token_strs else None
        return schemas.Tokens(count=len(ids), max_model_len=served.context_length, tokens=ids, token_strs=names)

    @app.post("/detokenize", responses=_ERRORS)
    async def detokenize(body: incoming.DetokenizeRequest) -> schemas.Detokenized:
        """Token ids as text, special tokens too."""
        gateway.need_model(body.model or served.name, served.kind)
        ids = list(served.known_tokens(body.tokens, "tokens"))
        text = await asyncio.to_thread(served.tokenizer.decode, ids, clean_up_tokenization_spaces=False)
        return schemas.Detokenized(prompt=text)

    @app.get("/health", responses=_ERRORS)
    async def health() -> schemas.Health:
        """Whether the gateway runs; it needs no key."""
        return schemas.Health()

    @app.get("/version", responses=_ERRORS)
    async def version() -> schemas.Version:
        """The gateway's version."""
        return schemas.Version(version=__version__)


def _replies(
    served: ServedModel, answers: Answers, body: incoming.SamplingRequest, use: Use | None = None, *, chat: bool
) -> Replies:
    scored = bool(body.logprobs) if isinstance(body, incoming.ChatRequest) else getattr(body, "logprobs", None) is not None
    usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
    return Replies(
        served, answers, chat=chat, scored=scored, usage=usage, trace=bool(body.veil and body.veil.trace), use=use
    )


async def _reply(request: Request, answers: Answers, replies: Replies, *, stream: bool) -> Response:
    """The whole reply, or a stream once its first event is there: until then an error still has a status of its own."""
    if not stream:
        async with answers:
            whole = await _unless_gone(request, replies.whole())
            return JSONResponse(whole.model_dump(mode="json"))
    events = replies.events()
    try:
        first = await _unless_gone(request, anext(events))
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


class _Gone(Exception):
    """The client closed the connection."""


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of ``work``, which is cancelled when the client goes."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _drained(answers: Answers) -> None:
    async for _ in answers:
        pass


def _caller(request: Request, user: str | None) -> str:
    """Whom a request is from, for turns in the line: the user that it names, or the program and the page."""
    if user:
        return f"user {user[:64]}"
    host = request.client.host if request.client else ""
    return f"{host} {request.headers.get('user-agent', '')[:200]} {request.headers.get('x-veil-tab', '')[:64]}"


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


# Errors --------------------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> JSONResponse:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(_first_problem(error))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        reply = _error(
            ApiError(error.status_code, str(error.detail), code="not_found" if error.status_code == 404 else None)
        )
        reply.headers.update(error.headers or {})
        return reply

    @app.exception_handler(_Gone)
    async def gone(_: Request, __: _Gone) -> Response:
        return Response(status_code=499)


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def _first_problem(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong, without the value that was sent: it may be a prompt."""
    problem = error.errors()[0]
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "json_invalid":
        return ApiError(400, "the body is not JSON")
    place = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    message = problem["msg"]
    if kind == "not_json":
        place, message = context["place"].split("."), context["message"]
    where = ".".join(part for part in place if part.isidentifier() or part.isdecimal()) or "the body"
    param = place[0] if place and place[0].isidentifier() else None
    if kind == "extra_forbidden":
        name = ascii(place[-1][:64])
        return ApiError(400, f"{where}: the gateway has no parameter {name}", param=param, code="unknown_parameter")
    return ApiError(400, f"{where}: {message}", param=param)


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with 400 where FastAPI says 422, and the streams beside the whole replies."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path, methods in schema["paths"].items():
        for method in methods.values():
            method["responses"].pop("422", None)
            if path in ("/v1/chat/completions", "/v1/completions"):
                method["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    app.openapi_schema = schema
    return schema
