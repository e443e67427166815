"""The gateway as an ASGI application: what its routes share, and the OpenAI routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import FastAPI, Request, Response

from veil import __version__
from veil.gateway import eager, incoming, metrics, page, problems, schemas, vectors
from veil.gateway.answers import Answers, texts
from veil.gateway.fair_queue import FairQueue
from veil.gateway.generation import Generator
from veil.gateway.guard import Access, Guard
from veil.gateway.messages import routes as messages
from veil.gateway.models import Models, Offered
from veil.gateway.prompts import chat_prompt, completion_prompts, tokens_asked, tools_of
from veil.gateway.replies import Replies
from veil.gateway.requests import goes_on, sampling_of
from veil.gateway.responses import routes as responses
from veil.gateway.sending import caller_of, owner_of, streamed, whole
from veil.gateway.served import ServedModel
from veil.gateway.statuses import ERRORS
from veil.gateway.tokens import shown
from veil.gateway.tools import Use

_EXPECT_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much the gateway does at once: generations that take turns, and requests that wait for one.

    ``answer_tokens`` is the most that an answer gets whose request has no limit. With ``eager`` a prompt's rows go up while
    it is written, where a client asks for that.
    """

    at_once: int = 4
    most_waiting: int = 32
    answer_tokens: int = 2048
    eager: bool = False


class Gateway:
    """What the routes share: the models, the queue, and when a prompt was last announced."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self.created = int(time.time())
        self.queue = FairQueue(settings.at_once, settings.most_waiting)
        self.clock = time.monotonic
        self._expected: dict[str, float] = {}

    @property
    def served(self) -> ServedModel:
        """The first model."""
        return self.models.first.served

    @property
    def generator(self) -> Generator:
        """What generates with the first model."""
        return self.models.first.generator

    def card(self, one: Offered, name: str | None = None) -> schemas.ModelCard:
        """A model as `GET /v1/models` lists it, by its name or an alias."""
        served = one.served
        return schemas.ModelCard(
            id=name or served.name,
            created=self.created,
            context_length=served.context_length,
            kind=served.kind,
            images=served.sight is not None,
        )

    def expect(self, characters: int, new_tokens: int, model: str | None = None) -> bool:
        """Have rows made for a prompt that is being written; False if that was said a moment ago."""
        served = self.served if model is None else self.models.find(model).served
        now = self.clock()
        if now - self._expected.get(served.name, -_EXPECT_EVERY_S) < _EXPECT_EVERY_S:
            return False
        self._expected[served.name] = now
        served.expect(characters, new_tokens)
        return True

    def status(self, model: str | None = None) -> schemas.Status:
        """What the page shows of a model, the first unless it is named."""
        one = self.models.first if model is None else self.models.find(model)
        served, ready, totals = one.served, one.served.hybrid.rows_ready, one.generator.totals
        counted = ("rows", "rows_made", "bytes_up_offline", "bytes_down_offline", "bytes_up_online", "bytes_down_online")
        return schemas.Status(
            version=__version__,
            model=served.name,
            models=[other.served.name for other in self.models.all],
            kind=served.kind,
            context_length=served.context_length,
            mode=served.mode,
            server=served.server,
            server_lost_s=None if served.lost_s is None else round(served.lost_s, 1),
            security_bits=served.security_bits,
            checked=served.checked,
            eager=self.settings.eager and not served.sent_whole,
            rows_ready=ready.tokens,
            prompt_rows_ready=ready.prompt_rows,
            running=self.queue.running,
            waiting=self.queue.waiting,
            sent=served.sent_sample.hex(),
            totals={name: getattr(totals, name) for name in counted},
        )


def build_app(
    served: ServedModel | Sequence[ServedModel],
    access: Access | None = None,
    settings: Settings | None = None,
    aliases: Mapping[str, str] | None = None,
) -> FastAPI:
    """The application. Its life ends with what runs; ``app.state.gateway`` is the `Gateway`.

    ``aliases`` are further names of models. `ValueError` where names do not fit together.
    """
    access = access or Access()
    several = [served] if isinstance(served, ServedModel) else list(served)
    gateway = Gateway(Models(several, aliases, access.keys.count), settings or Settings())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for one in several:
            one.hybrid.stop_padding(False)
        yield
        for one in several:
            one.hybrid.stop_padding()
        await asyncio.to_thread(gateway.queue.close)

    app = FastAPI(
        title="veil gateway",
        version=__version__,
        description="An OpenAI-compatible endpoint for a model that runs encrypted on somebody else's machine.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    problems.add_to(app)
    _add_openai(app, gateway)
    _add_own(app, gateway)
    _add_tokens(app, gateway)
    eager.add_to(app, gateway)
    vectors.add_to(app, gateway)
    responses.add_to(app, gateway)
    messages.add_to(app, gateway)
    page.add_to(app)
    metrics.add_to(app, gateway)
    app.openapi = lambda: problems.schema_of(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, access=access)
    return app


def _add_openai(app: FastAPI, gateway: Gateway) -> None:
    models, queue = gateway.models, gateway.queue

    @app.get("/v1/models", responses=ERRORS)
    async def list_models() -> schemas.ModelList:
        """The models that are served, under each of their names."""
        data = [gateway.card(one, name) for one in models.all for name in (*one.served.names, *one.aliases)]
        return schemas.ModelList(data=data)

    @app.get("/v1/models/{model:path}", responses=ERRORS)
    async def model(model: str) -> schemas.ModelCard:
        """One model."""
        return gateway.card(models.find(model), model)

    @app.post("/v1/chat/completions", response_model=schemas.ChatReply, responses=ERRORS)
    async def chat(body: incoming.ChatRequest, request: Request) -> Response:
        """The model's turn in a chat, whole or as server-sent events."""
        answers, use, served = await chat_answers(gateway, body, request)
        return await _reply(request, answers, _replies(served, answers, body, use, chat=True), stream=bool(body.stream))

    @app.post("/v1/completions", response_model=schemas.CompletionReply, responses=ERRORS)
    async def completions(body: incoming.CompletionRequest, request: Request) -> Response:
        """A text's continuation, whole or as server-sent events."""
        one = models.need(body.model, "text")
        sampling = await asyncio.to_thread(sampling_of, body, one.served, gateway.settings.answer_tokens)
        prompts = await asyncio.to_thread(completion_prompts, body, one.served)
        caller, owner = caller_of(request, body.user), owner_of(request)
        answers = texts(queue, caller, one.generator, prompts, body.n or 1, sampling, owner)
        replies = _replies(one.served, answers, body, chat=False)
        return await _reply(request, answers, replies, stream=bool(body.stream))


async def chat_answers(
    gateway: Gateway, body: incoming.ChatRequest, request: Request, stop: tuple[str, ...] = ()
) -> tuple[Answers, Use | None, ServedModel]:
    """The answers to a chat, the tools that they may call, and the model: for every API that has chats. `ApiError`."""
    one = gateway.models.need(body.model, "text")
    served = one.served
    use = await asyncio.to_thread(tools_of, body.tools, body.tool_choice, served, body.parallel_tool_calls)
    prompt = await asyncio.to_thread(chat_prompt, body.messages, served, use, body.chat_template_kwargs, goes_on(body))
    sampling = await asyncio.to_thread(sampling_of, body, served, gateway.settings.answer_tokens, use)
    sampling = replace(sampling, stop=(*sampling.stop, *stop))
    caller, owner = caller_of(request, body.user), owner_of(request)
    return texts(gateway.queue, caller, one.generator, [prompt], body.n or 1, sampling, owner), use, served


def _add_own(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/veil/status", responses=ERRORS)
    async def status(model: str | None = None) -> schemas.Status:
        """Rows that are ready, what waits, and what was sent; of the first model unless it is named."""
        return gateway.status(model)

    @app.post("/veil/expect", status_code=202, responses=ERRORS)
    async def expect(body: incoming.ExpectRequest) -> dict[str, bool]:
        """A prompt is being written: rows are made for it now. Says whether it was heeded; twice a second is enough."""
        return {"heeded": gateway.expect(body.characters, body.new_tokens, body.model)}


def _add_tokens(app: FastAPI, gateway: Gateway) -> None:
    def named(model: str | None) -> ServedModel:
        return gateway.served if model is None else gateway.models.find(model).served

    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(body: incoming.TokenizeRequest) -> schemas.TokenIds:
        """A text or a chat as token ids, as vLLM has it."""
        served = named(body.model)
        ids = await asyncio.to_thread(tokens_asked, body, served)
        names = [shown(served.token_bytes.named(token)) for token in ids] if body.return_token_strs else None
        return schemas.TokenIds(count=len(ids), max_model_len=served.context_length, tokens=ids, token_strs=names)

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize(body: incoming.DetokenizeRequest) -> schemas.Detokenized:
        """Token ids as text, special tokens too."""
        served = named(body.model)
        ids = list(served.known_tokens(body.tokens, "tokens"))
        text = await asyncio.to_thread(served.tokenizer.decode, ids, clean_up_tokenization_spaces=False)
        return schemas.Detokenized(prompt=text)

    @app.get("/health", responses=ERRORS)
    async def health() -> schemas.Health:
        """Whether the gateway runs; it needs no key."""
        return schemas.Health()

    @app.get("/version", responses=ERRORS)
    async def version() -> schemas.Version:
        """The gateway's version."""
        return schemas.Version(version=__version__)


def _replies(
    served: ServedModel, answers: Answers, body: incoming.SamplingRequest, use: Use | None = None, *, chat: bool
) -> Replies:
    scored = bool(body.logprobs) if isinstance(body, incoming.ChatRequest) else getattr(body, "logprobs", None) is not None
    usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
    return Replies(
        served,
        answers,
        chat=chat,
        scored=scored,
        usage=usage,
        trace=bool(body.veil and body.veil.trace),
        use=use,
        model=body.model if served.adapter_of(body.model) else served.name,
    )


async def _reply(request: Request, answers: Answers, replies: Replies, *, stream: bool) -> Response:
    if stream:
        return await streamed(request, answers, replies.events())
    return await whole(request, answers, replies.whole)
