"""From a request to the prompts that the generator takes: token ids of chats with their tools and pictures, and of texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from veil.gateway import incoming
from veil.gateway.failures import ApiError, bad_parameter
from veil.gateway.pictures import PLACE, is_picture, read_picture, refuse_many
from veil.gateway.served import ServedModel
from veil.gateway.tools import ChatTurn, ShownCall, ShownTool, Use, asked_in_words, in_words

if TYPE_CHECKING:
    from PIL.Image import Image


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
