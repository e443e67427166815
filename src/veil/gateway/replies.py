"""From events to the API's replies: whole ones, and the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from pydantic import BaseModel

from veil import __version__
from veil.gateway import schemas
from veil.gateway.account import Account, End
from veil.gateway.answers import Answers
from veil.gateway.calls import Call, CallReader
from veil.gateway.failures import from_error
from veil.gateway.served import ServedModel
from veil.gateway.tools import Use
from veil.gateway.transcript import Named, Piece, Scored


def usage_of(served: ServedModel, account: Account) -> schemas.Usage:
    """The counters of a request."""
    return schemas.Usage(
        prompt_tokens=account.prompt_tokens,
        completion_tokens=account.new_tokens,
        total_tokens=account.prompt_tokens + account.new_tokens,
        prompt_tokens_details=schemas.CachedTokens(cached_tokens=account.cached_tokens),
        veil=veil_usage_of(served, account),
    )


def veil_usage_of(served: ServedModel, account: Account) -> schemas.VeilUsage:
    """veil's own counters of a request."""
    stats, now = account.stats, time.perf_counter()
    started, first, last = account.started or now, account.first_token or now, account.last_token or now
    seconds = schemas.Seconds(
        queue=round(started - account.asked, 4),
        first_token=round(first - account.asked, 4),
        total=round(now - account.asked, 4),
        per_token=round((last - first) / max(1, account.new_tokens - 1), 4),
        wait_for_rows=round(stats.seconds["wait"], 4),
        online=round(stats.seconds["online_server"], 4),
        client=round(stats.seconds["client"], 4),
    )
    return schemas.VeilUsage(
        mode=served.mode,
        security_bits=served.security_bits,
        checked=served.checked,
        rows=stats.rows,
        rows_ready=stats.rows_ready,
        rows_made=stats.rows_made,
        trips=stats.trips,
        reconnects=stats.reconnects,
        bytes_up_offline=stats.bytes_up_offline,
        bytes_down_offline=stats.bytes_down_offline,
        bytes_up_online=stats.bytes_up_online,
        bytes_down_online=stats.bytes_down_online,
        seconds=seconds,
    )


def sent_by(served: ServedModel, account: Account) -> schemas.Sent:
    """What left this machine for a request so far."""
    stats = account.stats
    return schemas.Sent(
        sample=served.sent_sample.hex(),
        bytes_up=stats.bytes_up_online + stats.bytes_up_offline,
        bytes_down=stats.bytes_down_online + stats.bytes_down_offline,
        rows_ready=served.hybrid.rows_ready.tokens,
    )


@dataclass
class _Whole:
    text: str = ""
    tokens: list[Scored] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    end: End | None = None


class Common(TypedDict):
    """What all replies to one request say."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Replies:
    """The replies to one request. ``scored`` is for log-probabilities; streams carry usage and a trace if asked for.

    ``use`` are the tools that answers may call.
    """

    def __init__(
        self,
        served: ServedModel,
        answers: Answers,
        *,
        chat: bool,
        scored: bool,
        usage: bool = False,
        trace: bool = False,
        use: Use | None = None,
        model: str | None = None,
    ) -> None:
        self._served = served
        self._answers = answers
        self._chat = chat
        self._scored = scored
        self._usage = usage
        self._trace = trace
        self._use = use
        self._readers: dict[int, CallReader] = {}
        self._common: Common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model or served.name,
            "system_fingerprint": f"veil-{__version__}",
        }

    async def whole(self) -> schemas.ChatReply | schemas.CompletionReply:
        """The reply when every answer is over. `ApiError`."""
        found: dict[int, _Whole] = {}
        async for event in self._answers:
            answer = found.setdefault(event.index, _Whole())
            words, calls, tokens, end = self._read(event.index, event.what)
            answer.text += words
            answer.calls += calls
            answer.tokens += tokens
            answer.end = end
        usage = usage_of(self._served, self._answers.account)
        if self._chat:
            return schemas.ChatReply(
                **self._common, choices=[self._chat_choice(*item) for item in found.items()], usage=usage
            )
        choices = [self._choice(index, a.text, a.tokens, a.end) for index, a in found.items()]
        return schemas.CompletionReply(**self._common, choices=choices, usage=usage)

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. An error before the first is raised as `ApiError`, a later one becomes an event."""
        started: set[int] = set()
        try:
            async for event in self._answers:
                if event.index not in started:
                    started.add(event.index)
                    if self._chat:
                        yield self._chunk(event.index, schemas.Delta(role="assistant", content=""))
                for data in self._event(event.index, event.what):
                    yield data
        except Exception as error:
            known = from_error(error)
            if not started:
                raise known from None
            yield _sse(schemas.ErrorReply(error=schemas.ErrorBody(**known.body["error"])).model_dump_json())
            return
        if self._usage:
            usage = usage_of(self._served, self._answers.account)
            yield self._data([], usage=usage)
        yield _sse("[DONE]")

    def _read(self, index: int, what: Piece | End) -> tuple[str, list[Call], Sequence[Scored], End | None]:
        """Words, calls, tokens and the end in what came of an answer."""
        piece, end = (Piece(""), what) if isinstance(what, End) else (what, None)
        if self._use is None:
            return piece.text, [], piece.tokens, end
        reader = self._readers.setdefault(index, CallReader(self._use))
        words, calls = reader.feed(piece.text)
        if end is not None:
            words += reader.end()
            end = End("tool_calls") if reader.count and end.reason == "stop" else end
        return words, calls, piece.tokens, end

    def _event(self, index: int, what: Piece | End) -> list[bytes]:
        words, calls, tokens, end = self._read(index, what)
        if not self._chat:
            return [self._data([self._choice(index, words, tokens, end)])]
        delta = schemas.Delta(
            content=words if words or not (calls or end) else None,
            tool_calls=[_delta(call) for call in calls] or None,
        )
        if end is None:
            nothing = self._use is not None and not (words or calls or tokens)
            return [] if nothing else [self._chunk(index, delta, tokens)]
        rest = [self._chunk(index, delta, tokens)] if words or calls else []  # what was held back
        return [*rest, self._chunk(index, schemas.Delta(), end=end)]

    def _chunk(self, index: int, delta: schemas.Delta, tokens: Sequence[Scored] = (), end: End | None = None) -> bytes:
        logprobs = _chat_logprobs(tokens) if self._scored and tokens else None
        finish = end.reason if end else None
        return self._data([schemas.ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)])

    def _data(
        self, choices: list[schemas.ChunkChoice] | list[schemas.CompletionChoice], usage: schemas.Usage | None = None
    ) -> bytes:
        kind: Callable[..., BaseModel] = schemas.ChatChunk if self._chat else schemas.CompletionReply
        sent = sent_by(self._served, self._answers.account) if self._trace else None
        chunk = kind(**self._common, choices=choices, usage=usage, veil=sent)
        data = chunk.model_dump(mode="json")
        if not self._usage:
            del data["usage"]
        if not self._trace:
            del data["veil"]
        for choice in data["choices"]:
            if "delta" in choice:
                choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
        return _sse(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")))

    def _chat_choice(self, index: int, answer: _Whole) -> schemas.ChatChoice:
        assert answer.end is not None
        return schemas.ChatChoice(
            index=index,
            message=schemas.AnswerMessage(
                content=answer.text or (None if answer.calls else ""),
                tool_calls=_whole_calls(answer.calls) or None,
            ),
            logprobs=_chat_logprobs(answer.tokens) if self._scored else None,
            finish_reason=answer.end.reason,
        )

    def _choice(self, index: int, text: str, tokens: Sequence[Scored], end: End | None) -> schemas.CompletionChoice:
        logprobs = _text_logprobs(tokens) if self._scored else None
        return schemas.CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=end.reason if end else None)


def _delta(call: Call) -> schemas.ToolCallDelta:
    function = schemas.FunctionDelta(name=call.name, arguments=call.arguments)
    return schemas.ToolCallDelta(index=call.index, id=call.id, type="function" if call.id else None, function=function)


def _whole_calls(pieces: Sequence[Call]) -> list[schemas.ToolCall]:
    """Calls from their pieces."""
    made: list[schemas.ToolCall] = []
    for piece in pieces:
        if piece.id is not None and piece.name is not None:
            made.append(schemas.ToolCall(id=piece.id, function=schemas.FunctionCall(name=piece.name, arguments="")))
        made[-1].function.arguments += piece.arguments
    return made


def _chat_logprobs(tokens: Sequence[Scored]) -> schemas.ChatLogprobs:
    content = []
    for token in tokens:
        top = [schemas.TopLogprob(token=other.text, logprob=other.logprob, bytes=list(other.bytes)) for other in token.top]
        content.append(
            schemas.TokenLogprob(token=token.text, logprob=token.logprob, bytes=list(token.bytes), top_logprobs=top)
        )
    return schemas.ChatLogprobs(content=content)


def _text_logprobs(tokens: Sequence[Scored]) -> schemas.CompletionLogprobs:
    """The older form, which knows tokens by their texts: the token that was taken has its own, whatever others look like."""
    return schemas.CompletionLogprobs(
        tokens=[_older_name(token) for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[_top_by_name(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _top_by_name(token: Scored) -> dict[str, float]:
    """The likeliest tokens and the one that was taken, none left out: a second one of a name is called by its id."""
    others = [other for other in token.top if other.id != token.id]
    named: dict[str, Named] = {_older_name(token): token}
    for other in others:
        name = _older_name(other)
        named[name if name not in named else f"token_id:{other.id}"] = other
    return {name: named[name].logprob for name in sorted(named, key=lambda name: -named[name].logprob)}


def _older_name(token: Named) -> str:
    r"""A token's text; ``bytes:\xe2\x80`` for a part of a character, as OpenAI names it."""
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return f"bytes:{token.text}"


def _sse(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
