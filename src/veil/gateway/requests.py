"""From a request to what the generator takes: prompts as token ids, and a checked `Sampling`."""

from __future__ import annotations

from typing import Any

from veil.gateway import schemas
from veil.gateway.failures import ApiError, bad_parameter
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel


def sampling_of(body: schemas.SamplingRequest, served: ServedModel) -> Sampling:
    """The choices of a request; what it leaves open follows the model's own settings where it samples, else OpenAI's."""
    default = getattr(served.net, "generation_config", None)
    default = default if getattr(default, "do_sample", False) else None
    temperature = _first(body.temperature, getattr(default, "temperature", None))
    top_p = _first(body.top_p, getattr(default, "top_p", None))
    if top_p == 0:
        temperature, top_p = 0.0, 1.0
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Sampling(
        max_tokens=_max_tokens(body) or served.context_length,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(stop),
        seed=body.seed,
        logprobs=_logprobs(body),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        bias=served.biases(body.logit_bias or {}),
    )


def chat_prompt(body: schemas.ChatRequest, served: ServedModel) -> list[int]:
    """The token ids of a chat."""
    _refuse(tools=body.tools, functions=body.functions, audio=body.audio)
    if body.response_format and body.response_format.get("type", "text") != "text":
        raise bad_parameter("response_format", "only plain text can be asked for", "unsupported_value")
    if body.modalities and body.modalities != ["text"]:
        raise bad_parameter("modalities", "only text can be asked for", "unsupported_value")
    turns = [(message.role, _text(message, place)) for place, message in enumerate(body.messages)]
    return served.chat_ids(turns)


def completion_prompts(body: schemas.CompletionRequest, served: ServedModel) -> list[list[int]]:
    """The token ids of the texts to continue."""
    _refuse(suffix=body.suffix, echo=body.echo or None)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_parameter("best_of", "it can only be n", "unsupported_value")
    prompts = [served.text_ids(text, "prompt") for text in _several(body.prompt)]
    if len(prompts) * (body.n or 1) > 64:
        raise bad_parameter("n", "at most 64 answers come from one request")
    return prompts


def embedding_inputs(body: schemas.EmbeddingRequest, served: ServedModel) -> list[list[int]]:
    """The token ids of the texts."""
    if body.dimensions is not None and body.dimensions != served.width:
        raise bad_parameter("dimensions", f"{served.name} makes vectors of {served.width}", "unsupported_value")
    return [served.text_ids(text, "input") for text in _several(body.input)]


def _first(*values: float | None) -> float:
    """The first that is given, else 1."""
    return next((value for value in values if value is not None), 1.0)


def _max_tokens(body: schemas.SamplingRequest) -> int | None:
    if isinstance(body, schemas.ChatRequest):
        return body.max_completion_tokens or body.max_tokens
    return body.max_tokens or 16  # the older API's default


def _logprobs(body: schemas.SamplingRequest) -> int | None:
    if isinstance(body, schemas.CompletionRequest):
        return body.logprobs
    assert isinstance(body, schemas.ChatRequest)
    if body.top_logprobs and not body.logprobs:
        raise bad_parameter("top_logprobs", "it needs logprobs: true")
    return (body.top_logprobs or 0) if body.logprobs else None


def _text(message: schemas.Message, place: int) -> str:
    where = f"messages.{place}"
    if message.role in ("tool", "function"):
        raise ApiError(400, f"{where}: tools are not supported", param="messages", code="unsupported_value")
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        raise ApiError(400, f"{where}: it has no content", param="messages")
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise ApiError(400, f"{where}: only text parts are supported", param="messages", code="unsupported_value")
    return "\n".join(part.text or "" for part in message.content)


def _several(given: Any) -> list[Any]:
    """One text or list of ids, or several, as several."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise bad_parameter(name, f"{name} is not supported", "unsupported_value")
