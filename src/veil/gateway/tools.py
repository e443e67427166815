"""Tools: how a model's own chat template writes calls, or how we ask a model that has no way of its own.

A template is asked rather than known: it renders a call of a made-up function, and what stands around the JSON is its form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from veil.typing import Json


class ShownFunction(TypedDict):
    """A function as templates take it: ``parameters`` are a JSON schema."""

    name: str
    description: str
    parameters: dict[str, object]


class ShownTool(TypedDict):
    """A tool as templates take it."""

    type: str
    function: ShownFunction


class MadeCall(TypedDict):
    """What a call calls, with what."""

    name: str
    arguments: dict[str, object]


class ShownCall(TypedDict):
    """A call in an assistant's turn, as templates take it."""

    id: str
    type: str
    function: MadeCall


class ChatTurn(TypedDict, total=False):
    """A turn of a chat as templates take it; ``role`` and ``content`` are in every one."""

    role: str
    content: str
    name: str
    tool_call_id: str
    tool_calls: list[ShownCall]


Render = Callable[[Sequence[ChatTurn], Sequence[ShownTool] | None, bool], str]
"""Turns, tools and whether the answer is begun → the text of a chat. It may raise whatever a template raises."""

_NAME, _KEY, _VALUE = "probefunction", "probekey", "probevalue"
_MOST_CALLS = 8
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY = {"type": "object"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How calls are written: text before, between and after JSON objects, their keys, and whether they stand in a list."""

    before: str
    between: str
    after: str
    name: str = "name"
    arguments: str = "arguments"
    listed: bool = False
    native: bool = True

    @property
    def marker(self) -> str:
        """What a call begins with; empty where it is the JSON itself."""
        return self.before.strip()


OURS = Form(
    before="<tool_call>", between="</tool_call>\n<tool_call>", after="</tool_call>", native=False
)  # Hermes's, which many small models have seen


@dataclass(frozen=True, kw_only=True)
class Use:
    """The tools of one request. ``must`` is None where the model may answer in words, else the functions it may call."""

    form: Form
    tools: tuple[ShownTool, ...]
    must: tuple[str, ...] | None
    several: bool
    strict: bool

    @property
    def names(self) -> frozenset[str]:
        """The functions that may be called."""
        return frozenset(self.must if self.must is not None else [tool["function"]["name"] for tool in self.tools])

    def grammar(self, specials: Sequence[tuple[str, int]], content: Mapping[str, object] | None = None) -> str | None:
        """A Lark grammar of the answer; None where the model is free.

        ``specials`` are the tokens by text that stand for themselves only; ``content`` is a schema that words follow. Calls
        are by schema where one has to be made, in our own form, and where a function is strict.
        """
        if self.must is None and not (self.strict or content is not None or not self.form.native):
            return None
        form, rules = self.form, []
        functions = [tool["function"] for tool in self.tools if tool["function"]["name"] in self.names]
        rules.append("call: " + " | ".join(f"call{place}" for place in range(len(functions))))
        for place, function in enumerate(functions):  # each schema is a document of its own: it may refer to its parts
            head = f"{{{_quoted(form.name)}: {_quoted(function['name'])}, {_quoted(form.arguments)}: "
            rules.append(f'call{place}: {_quoted(head)} arguments{place} "}}"')
            rules.append(f"arguments{place}: %json " + json.dumps({"x-guidance": _COMPACT} | _object(function)))
        before, between, after = (_literal(text, specials) for text in (form.before, form.between, form.after))
        apart = _quoted(", ") if form.listed else between
        more = f" ({apart} call){{0,{_MOST_CALLS - 1}}}" if self.several and apart else ""
        inner = f'"[" call{more} "]"' if form.listed else f"call{more}"
        rules.append(f"calls: {before} {inner} {after}")
        if self.must is not None:
            start = "calls"
        elif content is not None:
            start = "calls | content"
            rules.append("content: %json " + json.dumps({"x-guidance": _COMPACT, **content}))
        else:
            start = "calls | TEXT"
            opening = _opening(form, specials)
            rules.append("ANY: /(?s:.*)/\nTEXT: ANY" + (f" & ~({_quoted(opening)} ANY)" if opening else ""))
        return "\n".join([f"start: {start}", *rules])


def form_of(render: Render, specials: Sequence[str]) -> Form:
    """The form of calls in a template that has tools and writes calls as JSON, else `OURS`."""
    ask: list[ChatTurn] = [{"role": "user", "content": "x"}]
    try:
        begun, said = render(ask, [_PROBE], True), render(ask, [_PROBE], False)
        one = _answer(render, ask, begun, said, 1)
    except Exception:  # a template is the bundle's, a program of its own
        return OURS
    if _NAME not in begun or one is None:
        return OURS
    try:
        two = _answer(render, ask, begun, said, 2)
    except Exception:  # it allows one call at a time
        two = None
    found = _first_json(one)
    if found is None:
        return OURS
    value, start, end = found
    listed = isinstance(value, list)
    call = value[0] if isinstance(value, list) and value else value
    if not isinstance(call, dict):
        return OURS
    names = [key for key, inner in call.items() if inner == _NAME]
    arguments = [key for key, inner in call.items() if inner == {_KEY: _VALUE}]
    if len(names) != 1 or len(arguments) != 1:
        return OURS
    after = re.split("|".join(map(re.escape, specials)) or "(?!)", one[end:])[0].rstrip()
    return Form(
        before=one[:start],
        between="" if listed or two is None else _between(two, start),
        after=after,
        name=names[0],
        arguments=arguments[0],
        listed=listed,
    )


def asked_in_words(use: Use, turns: Sequence[ChatTurn]) -> list[ChatTurn]:
    """The turns with our own form explained in the system's, and calls and results as texts."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in use.tools)
    only = f" Call {' or '.join(use.must)} now." if use.must is not None else " Otherwise answer in words."
    words = (
        f"You can call these functions, one JSON object each with its parameters as a schema:\n{lines}\n"
        'To call one, answer only with <tool_call>{"name": "...", "arguments": {...}}</tool_call>.' + only
    )
    plain = in_words(turns)
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{words}"}, *plain[1:]]
    return [{"role": "system", "content": words}, *plain]


def in_words(turns: Sequence[ChatTurn]) -> list[ChatTurn]:
    """Turns without calls and results of tools, which stand in their texts instead: results are the user's, in one turn."""
    made: list[ChatTurn] = []
    in_results = False
    for turn in turns:
        content = turn["content"]
        for call in turn.get("tool_calls", []):
            text = json.dumps(call["function"], ensure_ascii=False)
            content += ("\n" if content else "") + f"{OURS.before}{text}{OURS.after}"
        if turn["role"] != "tool":
            made.append({"role": turn["role"], "content": content})
            in_results = False
            continue
        result = f"<tool_response>{content}</tool_response>"
        if in_results:
            made[-1]["content"] += f"\n{result}"
        else:
            made.append({"role": "user", "content": result})
        in_results = True
    return made


_PROBE: ShownTool = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "x",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "x"}}, "required": [_KEY]},
    },
}


def _answer(render: Render, ask: Sequence[ChatTurn], begun: str, said: str, count: int) -> str | None:
    """What a template writes for so many calls after the beginning of an answer."""
    calls: list[ShownCall] = [
        {"id": f"probeid0{place}", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
        for place in range(1, count + 1)
    ]
    text = render([*ask, {"role": "assistant", "content": "", "tool_calls": calls}], [_PROBE], False)
    for beginning in (begun, said if begun == said else begun.rstrip()):
        if text.startswith(beginning):
            return text[len(beginning) :]
    return None


def _first_json(text: str) -> tuple[Json, int, int] | None:
    """The first JSON value with the probe in it, and where it begins and ends."""
    for found in re.finditer(r"[\[{]", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except ValueError:
            continue
        if _NAME in json.dumps(value):
            return value, found.start(), end
    return None


def _between(two: str, start: int) -> str:
    """What stands between the first call's JSON and the second's."""
    _, end = json.JSONDecoder().raw_decode(two, start)
    second = _first_json(two[end:])
    return two[end : end + second[1]] if second else ""


def _object(function: ShownFunction) -> dict[str, object]:
    """A function's parameters as the schema of an object."""
    parameters = function.get("parameters") or {}
    said = {"type", "$ref", "anyOf", "oneOf", "allOf", "const", "enum"} & set(parameters)
    return parameters if said else _ANY | parameters


def _opening(form: Form, specials: Sequence[tuple[str, int]]) -> str:
    """What a text may not begin with; nothing where a special token says it, which no text has."""
    if any(form.marker.startswith(name) for name, _ in specials):
        return ""
    return form.marker or ("[" if form.listed else "{")


def _literal(text: str, specials: Sequence[tuple[str, int]]) -> str:
    """A text as part of a Lark rule: special tokens by their ids."""
    ids = dict(specials)
    parts = re.split("(" + ("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or "(?!)") + ")", text)
    return " ".join(f"<[{ids[part]}]>" if part in ids else _quoted(part) for part in parts if part)


def _quoted(text: str) -> str:
    return json.dumps(text)
