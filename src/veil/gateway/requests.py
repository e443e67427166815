"""From a request to what the generator takes: prompts as token ids, and a checked `Sampling`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from veil.gateway import forms, incoming
from veil.gateway.failures import ApiError, bad_parameter
from veil.gateway.grammar import ANY_OBJECT, Grammar
from veil.gateway.pictures import PLACE, is_picture, read_picture, refuse_many
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel
from veil.gateway.tools import ChatTurn, ShownCall, ShownTool, Use, asked_in_words, in_words

if TYPE_CHECKING:
    from PIL.Image import Image

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


def chat_prompt(
    messages: list[incoming.Message],
    served: ServedModel,
    use: Use | None = None,
    variables: dict[str, object] | None = None,
    going: bool = False,
) -> list[int]:
    """The token ids of a chat, with the tools as the model's template shows them, or in words.

    With ``going`` more of its last turn is asked for.
    """
    pictures: list[Image] | None = None if served.sight is None else []
    turns = [_turn(message, f"messages.{place}", pictures) for place, message in enumerate(messages)]
    refuse_many(pictures or ())
    served.refuse_huge([str(turn["content"]) for turn in turns], "messages")
    if use is not None and use.form.native:
        return served.template_ids(turns, list(use.tools), variables, going=going, pictures=pictures or ())
    if use is not None:
        turns = asked_in_words(use, turns)
    elif any("tool_calls" in turn or turn["role"] == "tool" for turn in turns) and not served.call_form.native:
        turns = in_words(turns)
    return served.template_ids(turns, variables=variables, going=going, pictures=pictures or ())


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


def tools_of(
    tools: list[incoming.Tool] | None,
    choice: object,
    served: ServedModel,
    several: bool | None = None,
) -> Use | None:
    """The tools of a request and whether one has to be called; None where none may be. `ApiError`."""
    named = choice.function.name if isinstance(choice, incoming.NamedTool) else None
    if not tools:
        if choice not in (None, "none", "auto"):
            raise bad_parameter("tool_choice", "there are no tools to choose from")
        return None
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_parameter("tools", "two functions have the same name")
    if named is not None and named not in names:
        raise bad_parameter("tool_choice", f"there is no tool {named!r}")
    if choice == "none":
        return None
    must = (named,) if named is not None else tuple(names) if choice == "required" else None
    return Use(
        form=served.call_form,
        tools=tuple(_tool(tool) for tool in tools),
        must=must,
        several=bool(several) if must is not None else several is not False,
        strict=any(tool.function.strict for tool in tools),
    )


def _tool(tool: incoming.Tool) -> ShownTool:
    """A tool as templates take it."""
    function = tool.function
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": function.name, "description": function.description or "", "parameters": parameters},
    }


def tokens_asked(body: incoming.TokenizeRequest, served: ServedModel) -> list[int]:
    """The token ids of a text or a chat, also of one that is too long to be answered."""
    if (body.prompt is None) == (body.messages is None):
        raise bad_parameter("prompt", "give prompt or messages, one of them")
    if body.prompt is not None:
        served.refuse_huge([body.prompt], "prompt")
        ids: list[int] = served.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)["input_ids"]
        return ids
    use = tools_of(body.tools, None, served)
    return chat_prompt(body.messages or [], served, use, body.chat_template_kwargs)


def completion_prompts(body: incoming.CompletionRequest, served: ServedModel) -> list[list[int]]:
    """The token ids of the texts to continue."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_parameter("best_of", "it can only be n", "unsupported_value")
    given = _several(body.prompt)
    if len(given) * (body.n or 1) > 64:
        raise bad_parameter("n", "at most 64 answers come from one request")
    return [served.text_ids(text, "prompt") for text in given]


def embedding_inputs(body: incoming.EmbeddingRequest, served: ServedModel) -> list[list[int]]:
    """The token ids of the texts."""
    if body.dimensions is not None and body.dimensions != served.width:
        raise bad_parameter("dimensions", f"{served.name} makes vectors of {served.width}", "unsupported_value")
    return [served.text_ids(text, "input") for text in _several(body.input)]


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


def _turn(message: incoming.Message, where: str, pictures: list[Image] | None) -> ChatTurn:
    """A turn as chat templates take it; its pictures are added to those of a model that sees."""
    turn: ChatTurn = {"role": "system" if message.role == "developer" else message.role}
    if message.tool_calls and message.role != "assistant":
        raise bad_parameter("messages", f"{where}: only an assistant's turn calls tools")
    turn["content"] = _text(message, where, pictures)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, where) for call in message.tool_calls]
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call(call: incoming.PastToolCall, where: str) -> ShownCall:
    """A call with its arguments as an object: templates write them as JSON themselves."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_parameter("messages", f"{where}: the arguments of {call.function.name} are no JSON object")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _text(message: incoming.Message, where: str, pictures: list[Image] | None) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant" and (message.tool_calls or message.refusal is not None):
            return message.refusal or ""
        raise ApiError(400, f"{where}: it has no content", param="messages")
    if isinstance(content, str):
        return content if pictures is None else content.replace(PLACE, "")
    whole = ""
    for part in content:
        if pictures is not None and isinstance(part, incoming.OtherPart) and is_picture(part):
            pictures.append(read_picture(part, where))
            whole += PLACE
            continue
        text = (part.text if part.text is not None else part.refusal) if isinstance(part, incoming.TextPart) else None
        if text is None and isinstance(part, incoming.TextPart):
            raise ApiError(400, f"{where}: a part of type {part.type} has no text", param="messages")
        if text is None:
            raise ApiError(400, f"{where}: only text parts are supported", param="messages", code="unsupported_value")
        text = text if pictures is None else text.replace(PLACE, "")
        whole += f"\n{text}" if whole and not whole.endswith(PLACE) else text
    return whole


def _several(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One text or list of ids, or several, as several."""
    if isinstance(given, str):
        return [given]
    ids = [part for part in given if isinstance(part, int)]
    return [ids] if ids else [part for part in given if not isinstance(part, int)]
