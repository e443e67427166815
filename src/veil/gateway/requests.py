"""From a request to how answers are chosen: a checked `Sampling`, with a grammar for what they must look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from veil.gateway import forms, incoming
from veil.gateway.failures import bad_parameter
from veil.gateway.grammar import ANY_OBJECT, Grammar
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel
from veil.gateway.tools import Use

if TYPE_CHECKING:
    pass

USUAL_TEMPERATURE = 0.3
"""The temperature where neither request nor model says one; the page's and the terminal's too."""

_COMPLETION_TOKENS = 16
"""The older API's own limit of an answer."""


def sampling_of(body: incoming.SamplingRequest, served: ServedModel, most_tokens: int, use: Use | None = None) -> Sampling:
    """The choices of a request; what it leaves open follows the model's own settings, else the usual ones.

    ``most_tokens`` bounds an answer where the request does not; ``use`` are the tools that it may call. May take a while: a
    grammar is made here. `ApiError`.
    """
    liked = served.preferences
    temperature = _first(body.temperature, liked.temperature, USUAL_TEMPERATURE)
    top_p = _first(body.top_p, liked.top_p, 1.0)
    if top_p == 0:
        temperature, top_p = 0.0, 1.0
    limit = _max_tokens(body) or min(liked.max_new_tokens or most_tokens, most_tokens)
    min_tokens = body.min_tokens or 0
    if min_tokens > limit:
        raise bad_parameter("min_tokens", f"it is above the answer's limit of {limit} tokens")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Sampling(
        max_tokens=limit,
        temperature=temperature,
        top_p=top_p,
        top_k=max(0, int(_first(body.top_k, liked.top_k, 0))),
        min_p=_first(body.min_p, liked.min_p, 0.0),
        typical_p=_first(body.typical_p, liked.typical_p, 1.0),
        stop=tuple(stop),
        stop_tokens=frozenset(served.known_tokens(body.stop_token_ids or [], "stop_token_ids")),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=min_tokens,
        seed=body.seed,
        logprobs=_logprobs(body),
        repetition_penalty=_first(body.repetition_penalty, liked.repetition_penalty, 1.0),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        bias=served.biases(body.logit_bias or {}),
        grammar=grammar_of(body, served, use),
        adapter=served.adapter_of(body.model),
        going=isinstance(body, incoming.ChatRequest) and goes_on(body),
        written=frozenset(
            token for text, token in served.special_tokens if use and text in f"{use.form.before}{use.form.after}"
        ),
    )


def grammar_of(body: incoming.SamplingRequest, served: ServedModel, use: Use | None = None) -> Grammar | None:
    """What the answers must look like, by whichever field says it. `ApiError` for several at once, and for what fails.

    Beside tools only a schema can be asked for: the answer is a call or follows it.
    """
    new = body.structured_outputs or forms.StructuredOutputs()
    given: dict[str, tuple[str, object]] = {
        "guided_json": ("schema", body.guided_json),
        "guided_regex": ("regex", body.guided_regex),
        "guided_choice": ("choice", body.guided_choice),
        "guided_grammar": ("lark", body.guided_grammar),
        "grammar": ("lark", body.grammar),
        "json_schema": ("schema", body.json_schema),
        "structured_outputs.json": ("schema", new.json_),
        "structured_outputs.regex": ("regex", new.regex),
        "structured_outputs.choice": ("choice", new.choice),
        "structured_outputs.grammar": ("lark", new.grammar),
        "response_format": ("schema", _schema_of(body.response_format)),
    }
    asked = {name: pair for name, pair in given.items() if pair[1] is not None}
    if use is not None:
        schema = next((value for kind, value in asked.values() if kind == "schema"), None)
        if len(asked) > (schema is not None) or not isinstance(schema, dict | None):
            raise bad_parameter(next(iter(asked)), "beside tools the only structure is one schema", "unsupported_value")
        text = use.grammar(served.grammars.specials("tools"), schema)
        return None if text is None else served.grammars.lark(text, "tools")
    if not asked:
        return None
    if len(asked) > 1:
        first, second, *_ = asked
        raise bad_parameter(second, f"{first} says already what answers look like; give one of the two")
    ((name, (kind, value)),) = asked.items()
    param = name.split(".")[0]
    if kind == "schema" and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise bad_parameter(param, "this is no JSON schema: it is no JSON") from None
    make: Callable[[object, str], Grammar] = getattr(served.grammars, kind)
    return make(value, param)


def _schema_of(asked: forms.ResponseFormat | None) -> dict[str, object] | None:
    if isinstance(asked, forms.JsonObject):
        return ANY_OBJECT if asked.schema_ is None else asked.schema_
    if isinstance(asked, forms.JsonSchema):
        if asked.json_schema.schema_ is None:
            return ANY_OBJECT
        return asked.json_schema.schema_
    return None


def goes_on(body: incoming.ChatRequest) -> bool:
    """Whether more of the last turn is asked for, rather than a new one. `ApiError`."""
    if not body.continue_final_message:
        if body.add_generation_prompt is False:
            raise bad_parameter("add_generation_prompt", "false needs continue_final_message: true", "unsupported_value")
        return False
    if body.add_generation_prompt is not False:
        raise bad_parameter("continue_final_message", "it needs add_generation_prompt: false beside it")
    last = body.messages[-1]
    if last.role != "assistant" or last.tool_calls or not last.content:
        raise bad_parameter("continue_final_message", "the last message has to be an assistant's with words in it")
    return True


def _first(*values: float | None) -> float:
    """The first that is given."""
    return next(value for value in values if value is not None)


def _max_tokens(body: incoming.SamplingRequest) -> int | None:
    if isinstance(body, incoming.ChatRequest):
        return body.max_completion_tokens or body.max_tokens
    return body.max_tokens or max(_COMPLETION_TOKENS, body.min_tokens or 0)


def _logprobs(body: incoming.SamplingRequest) -> int | None:
    if isinstance(body, incoming.CompletionRequest):
        return body.logprobs
    assert isinstance(body, incoming.ChatRequest)
    if body.top_logprobs and not body.logprobs:
        raise bad_parameter("top_logprobs", "it needs logprobs: true")
    return (body.top_logprobs or 0) if body.logprobs else None
