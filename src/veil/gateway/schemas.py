"""The OpenAI API's replies, as far as a text model has them, and veil's own fields beside them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


def _is_none(value: object) -> bool:
    return value is None


class Reply(BaseModel):
    """A reply, as JSON."""

    model_config = ConfigDict(protected_namespaces=())


class ErrorBody(Reply):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Reply):
    """Every error."""

    error: ErrorBody


class ModelCard(Reply):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "veil"
    context_length: int
    kind: Literal["text", "encoder"]
    images: bool = False


class ModelList(Reply):
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class CachedTokens(Reply):
    """Prompt tokens whose attention state was still here, so that no row was sent for them."""

    cached_tokens: int = 0


class Seconds(Reply):
    """Where a request's time went: waiting in the queue, until the first token, in all; and the parts of the work."""

    queue: float
    first_token: float
    total: float
    per_token: float
    wait_for_rows: float
    online: float
    client: float


class VeilUsage(Reply):
    """What a request cost and sent: token rows, those made offline, round trips, payload bytes, security (0:
    nothing encrypted).

    ``checked`` is the model against whose weights the server's answers were checked, null where they were not.
    """

    mode: str
    security_bits: float
    checked: str | None
    rows: int
    rows_ready: int
    rows_made: int
    trips: int
    reconnects: int
    bytes_up_offline: int
    bytes_down_offline: int
    bytes_up_online: int
    bytes_down_online: int
    seconds: Seconds


class Usage(Reply):
    """Tokens, as OpenAI counts them, and veil's own counters."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = CachedTokens()
    veil: VeilUsage | None = None


class TopLogprob(Reply):
    """A token that might have been, or was."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token of the answer and the likeliest in its place."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(Reply):
    """Log-probabilities by the model, before temperature, penalties and biases."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(Reply):
    """The function that is called, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(Reply):
    """A call."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionDelta(Reply):
    """More of a call's arguments; its function with the first."""

    name: str | None = Field(default=None, exclude_if=_is_none)
    arguments: str


class ToolCallDelta(Reply):
    """The next piece of a call."""

    index: int
    id: str | None = Field(default=None, exclude_if=_is_none)
    type: Literal["function"] | None = Field(default=None, exclude_if=_is_none)
    function: FunctionDelta


class AnswerMessage(Reply):
    """The model's turn; without words where it only calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = Field(default=None, exclude_if=_is_none)


Finish = Literal["stop", "length", "tool_calls"]


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class ChatReply(Reply):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Reply):
    """What is new in a chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Reply):
    """The next piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class Sent(Reply):
    """What left this machine: the first bytes of the last packed rows, in hexadecimal, bytes so far, rows left."""

    sample: str
    bytes_up: int
    bytes_down: int
    rows_ready: int


class ChatChunk(Reply):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    veil: Sent | None = None


class CompletionLogprobs(Reply):
    """Log-probabilities in the older form."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply):
    """One continuation, or in a stream its next piece."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class CompletionReply(Reply):
    """A completion, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    veil: Sent | None = None


class Embedding(Reply):
    """One text's vector: floats, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    """Tokens of an embedding request, and veil's own counters."""

    prompt_tokens: int
    total_tokens: int
    veil: VeilUsage | None = None


class EmbeddingReply(Reply):
    """``POST /v1/embeddings``."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Status(Reply):
    """``GET /veil/status``: what the page shows about the machine behind it.

    ``server_lost_s`` is None while the server answers, else for how many seconds it has not. ``eager`` is true where a
    prompt's rows may go up while it is written.
    """

    version: str
    model: str
    models: list[str]
    kind: Literal["text", "encoder"]
    context_length: int
    mode: str
    server: str | None
    server_lost_s: float | None
    security_bits: float
    checked: str | None
    eager: bool
    rows_ready: int
    prompt_rows_ready: int
    running: int
    waiting: int
    sent: str
    totals: dict[str, int]


class TokenIds(Reply):
    """``POST /tokenize``: the ids, how many there are and may be, and the tokens as text if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Reply):
    """``POST /detokenize``."""

    prompt: str


class Health(Reply):
    """``GET /health``."""

    status: Literal["ok"] = "ok"


class Version(Reply):
    """``GET /version``."""

    version: str
