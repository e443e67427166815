# ruff: noqa: E501 (templates are one line each: a break would be part of what they write)
"""Tools: the form of a template is found by asking it, calls are read as they come, and a model that must call one does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

from veil.gateway.calls import Call, CallReader
from veil.gateway.sampling import Sampler
from veil.gateway.tools import OURS, Form, Use, form_of, in_words

HERMES = """{% if tools %}<|user|>tools:{% for t in tools %}
{{ t | tojson }}{% endfor %}<|end|>{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|user|>
<tool_response>
{{ m.content }}
</tool_response><|end|>{% elif m.tool_calls %}<|reply|>{{ m.content }}{% for c in m.tool_calls %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>{% elif m.role == 'assistant' %}<|reply|>{{ m.content }}<|end|>{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|reply|>{% endif %}"""
BARE = """{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}<|reply|>{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|end|>{% else %}<|user|>{{ m.content }}{{ tools | tojson if tools else '' }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|reply|>{% endif %}"""
LISTED = """{% for m in messages %}{% if m.tool_calls %}<|mark|> [{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{{ ', ' if not loop.last }}{% endfor %}]<|end|>{% else %}<|user|>{{ m.content }}{{ tools | tojson if tools else '' }}<|end|>{% endif %}{% endfor %}"""
PYTHONIC = """{% for m in messages %}{{ tools | tojson if tools else '' }}{% if m.tool_calls %}[{{ m.tool_calls[0].function.name }}(x=1)]<|end|>{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}"""
PLAIN = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|reply|>{% endif %}"
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}


def form(make: Any, template: str) -> Form:
    tokenizer = make(template)

    def render(turns: Any, tools: Any, begun: bool) -> str:
        return str(tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=begun, tokenize=False))

    return form_of(render, ["<|end|>", "<|user|>", "<|reply|>", "<|mark|>"])


def test_forms_of_templates(new_byte_tokenizer: Any) -> None:
    hermes = form(new_byte_tokenizer, HERMES)
    assert (hermes.before, hermes.between, hermes.after) == (
        "<tool_call>\n",
        "\n</tool_call><tool_call>\n",
        "\n</tool_call>",
    )
    assert (hermes.name, hermes.arguments, hermes.listed, hermes.native) == ("name", "arguments", False, True)
    listed = form(new_byte_tokenizer, LISTED)
    assert (listed.before, listed.marker, listed.after, listed.listed) == ("<|mark|> ", "<|mark|>", "", True)
    bare = form(new_byte_tokenizer, BARE)
    assert (bare.before, bare.marker, bare.arguments, bare.native) == ("", "", "parameters", True)
    assert form(new_byte_tokenizer, PYTHONIC) is OURS, "no JSON: our own form is asked for in words"
    assert form(new_byte_tokenizer, PLAIN) is OURS
    assert form(new_byte_tokenizer, "{{ 1 // 0 }}") is OURS


# Reading ---------------------------------------------------------------------------------------------------------------


def use(form: Form = OURS, **options: Any) -> Use:
    settings: dict[str, Any] = {"form": form, "tools": (WEATHER, CLOCK), "must": None, "several": True, "strict": False}
    return Use(**settings | options)


BARE_FORM = Form(before="", between="", after="", arguments="parameters")
LISTED_FORM = Form(before="<|mark|> ", between="", after="", listed=True)
CALL = '{"name": "clock", "arguments": {}}'
READINGS = [
    (OURS, "hello <b>there</b>", "hello <b>there</b>", []),
    (OURS, f"<tool_call>{CALL}</tool_call>", "", ["clock"]),
    (OURS, f"Let me see. <tool_call>\n{CALL}\n</tool_call>\n", "Let me see. ", ["clock"]),
    (OURS, f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", ["clock", "clock"]),
    (OURS, f"<tool_call>{CALL}", "", ["clock"]),
    (OURS, f"<tool_call>{CALL}</tool_call> Done.", "Done.", ["clock"]),
    (OURS, '<tool_call>{"name": "clock", "argu', '<tool_call>{"name": "clock", "argu', []),
    (
        OURS,
        '<tool_call>{"name": "nothing", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "nothing", "arguments": {}}</tool_call>',
        [],
    ),
    (OURS, "<tool_call>what is that?", "<tool_call>what is that?", []),
    (OURS, "a <tool_", "a <tool_", []),
    (BARE_FORM, '{"name": "clock", "parameters": {}}', "", ["clock"]),
    (BARE_FORM, '\n{"name": "clock", "arguments": {}}', "", ["clock"]),
    (BARE_FORM, '{"name": 5}', '{"name": 5}', []),
    (BARE_FORM, 'An object is {"a": 1}.', 'An object is {"a": 1}.', []),
    (LISTED_FORM, f"<|mark|> [{CALL}, {CALL}]", "", ["clock", "clock"]),
    (LISTED_FORM, "[1, 2] is a list", "[1, 2] is a list", []),
    (
        OURS,
        '<tool_call>{"name": "clock", "arguments": {"a": ["}", {"b": "\\"]"}]}, "id": 1}</tool_call>',
        "",
        ["clock"],
        {"a": ["}", {"b": '"]'}]},
    ),
    (OURS, '<tool_call>{"arguments": {"a": 1}, "name": "clock"}</tool_call>', "", ["clock"], {"a": 1}),
    (OURS, '<tool_call>{"name": "clock", "arguments": {"a": ["}', "", ["clock"], None),
    (LISTED_FORM, '<|mark|>[{"name": "clock", "arguments": {"a": [1]}, "id": "x"}]', "", ["clock"], {"a": [1]}),
    (LISTED_FORM, f"<|mark|>[{CALL}, 5]", "5]", ["clock"]),
    (LISTED_FORM, "<|mark|>[5]", "<|mark|>[5]", []),
]


@pytest.mark.parametrize(
    ("form", "text", "words", "names", "given"), [case if len(case) > 4 else (*case, {}) for case in READINGS]
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_calls_are_read_however_they_come(
    form: Form, text: str, words: str, names: list[str], given: Any, step: int
) -> None:
    reader, said = CallReader(use(form)), ""
    found: list[Call] = []
    for start in range(0, len(text), step):
        more, calls = reader.feed(text[start : start + step])
        said, found = said + more, found + calls
    said += reader.end()
    assert (said.strip(), [call.name for call in found if call.name]) == (words.strip(), names)
    assert sorted({call.index for call in found}) == list(range(len(names)))
    assert len({call.id for call in found if call.id}) == len(names)
    for index in range(len(names)):
        arguments = "".join(call.arguments for call in found if call.index == index)
        assert json.loads(arguments) == given if given is not None else arguments == '{"a": ["}'


def test_calls_and_results_in_words() -> None:
    turns: Any = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
        {"role": "tool", "content": "12", "tool_call_id": "2"},
        {"role": "assistant", "content": "It is noon."},
    ]
    assert in_words(turns) == [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": '<tool_call>{"name": "clock", "arguments": {"a": 1}}</tool_call>'},
        {"role": "user", "content": "<tool_response>noon</tool_response>\n<tool_response>12</tool_response>"},
        {"role": "assistant", "content": "It is noon."},
    ]


# Through the API -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[HERMES, BARE, LISTED, PLAIN], ids=["hermes", "bare", "listed", "plain"])
def running(request: Any, new_byte_tokenizer: Any, new_byte_model: Any, serve_model: Any, listen: Any) -> Iterator[Any]:
    served = serve_model(new_byte_model(), new_byte_tokenizer(request.param), name="bytes", mode="disable")
    with listen(served) as made:
        yield made
    served.hybrid.close()


@pytest.fixture
def client(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **options: Any) -> Any:
    given: dict[str, Any] = {
        "model": "bytes",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER, CLOCK],
        "max_tokens": 400,
        "temperature": 1,
        "seed": 3,
    }
    return client.chat.completions.create(**given | options)


@pytest.mark.parametrize("seed", range(3))
def test_a_tool_that_has_to_be_called_is_called_by_its_schema(client: openai.OpenAI, seed: int) -> None:
    (choice,) = ask(client, tool_choice="required", seed=seed).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    given = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert given["city"] in ("Paris", "Rome") and 1 <= given["days"] <= 9
    else:
        assert (call.function.name, given) == ("clock", {})


def test_a_named_tool_is_called_and_a_stream_says_the_same(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    (choice,) = ask(client, tool_choice=named).choices
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    chunks = [chunk.choices[0] for chunk in ask(client, tool_choice=named, stream=True)]
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0} and deltas[0].id and deltas[0].type == "function"
    assert "".join(delta.function.name or "" for delta in deltas) == "weather"
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)


def scripted(monkeypatch: Any, running: Any, text: str) -> None:
    """The next answer's tokens."""
    ids = iter(running.gateway.served.tokenizer(text + "<|end|>")["input_ids"])
    call = Sampler.__call__

    def script(self: Any, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(call(self, input_ids, scores), -torch.inf)
        only[0, next(ids)] = 0
        return only

    monkeypatch.setattr(Sampler, "__call__", script)


@pytest.mark.parametrize("stream", [False, True])
def test_auto_reads_the_models_own_form(client: openai.OpenAI, running: Any, monkeypatch: Any, stream: bool) -> None:
    form = running.gateway.served.call_form
    call = json.dumps({form.name: "weather", form.arguments: {"city": "Rome", "days": 2}})
    text = f"{form.before}[{call}]{form.after}" if form.listed else f"{form.before}{call}{form.after}"
    monkeypatch.setattr(Use, "grammar", lambda *_: None)
    scripted(monkeypatch, running, text)
    if stream:
        chunks = [chunk.choices[0] for chunk in ask(client, stream=True)]
        first, *more = [delta.function for chunk in chunks for delta in chunk.delta.tool_calls or []]
        assert len(more) > 9 and not any(delta.name for delta in more), "arguments come as they are made"
        found, reason = first, chunks[-1].finish_reason
        found.arguments += "".join(delta.arguments for delta in more)
    else:
        (choice,) = ask(client).choices
        found, reason = choice.message.tool_calls[0].function, choice.finish_reason
    assert (found.name, json.loads(found.arguments), reason) == ("weather", {"city": "Rome", "days": 2}, "tool_calls")


def test_none_hides_the_tools_and_answers_in_words(client: openai.OpenAI, running: Any, monkeypatch: Any) -> None:
    scripted(monkeypatch, running, "hello")
    reply = ask(client, tool_choice="none")
    assert (reply.choices[0].message.content, reply.choices[0].message.tool_calls) == ("hello", None)
    alone = running.gateway.served.chat_ids([("user", "hi")])
    assert reply.usage.prompt_tokens == len(alone)


def test_a_conversation_with_calls_goes_on(client: openai.OpenAI, running: Any, monkeypatch: Any) -> None:
    call: Any = {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "the-result"},
    ]
    told = httpx.post(f"{running.url}/tokenize", json={"messages": messages, "tools": [CLOCK]}).json()["tokens"]
    text = running.gateway.served.tokenizer.decode(told)
    assert "the-result" in text and '"name": "clock"' in text, text
    for tools in ([WEATHER, CLOCK], None):
        scripted(monkeypatch, running, "noon")
        options: dict[str, Any] = {} if tools is None else {"tools": tools}
        reply = client.chat.completions.create(model="bytes", messages=messages, **options)
        assert reply.choices[0].message.content == "noon"
        monkeypatch.undo()


def test_words_by_a_schema_or_a_call(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for seed in range(4):
        (choice,) = ask(client, response_format=wanted, seed=seed).choices
        if choice.message.tool_calls:
            assert {call.function.name for call in choice.message.tool_calls} <= {"weather", "clock"}
        else:
            assert list(json.loads(choice.message.content)) == ["a"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "a",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "messages",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}]},
            "messages",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages"),
    ],
    ids=lambda part: re.sub(" at 0x[0-9a-f]+", "", str(part)),
)
def test_refusals(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == param
