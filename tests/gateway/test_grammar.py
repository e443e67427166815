"""Answers that follow a grammar, made from random weights: every one is valid, and the fields are vLLM's and llama.cpp's."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import httpx
import pytest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", "é"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def answer(running: Any, **options: Any) -> Any:
    body = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300, "temperature": 1} | options
    reply = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop", choice
    return choice["message"]["content"]


def valid(text: str, schema: Any) -> bool:
    import jsonschema_rs

    return bool(jsonschema_rs.validator_for(schema).is_valid(json.loads(text)))


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"json_schema": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_json_by_a_schema(bytes_running: Any, options: dict[str, Any], seed: int) -> None:
    assert valid(answer(bytes_running, seed=seed, **options), SCHEMA)


def random_schema(draw: random.Random, depth: int = 3) -> Any:
    """A schema that something small satisfies."""
    kinds = ["boolean", "null", "integer", "string", "enum", "const", "pattern", "format", "number"]
    kind = draw.choice(kinds + ["object", "array", "anyOf", "$ref"] * 2 if depth else kinds)
    if kind == "enum":
        return {"enum": draw.sample(["a", "é", 1, -2.5, None, True, "", '"'], draw.randint(1, 4))}
    if kind == "const":
        return {"const": draw.choice([[1, {"a": None}], "x\n", 0])}
    if kind == "integer":
        low = draw.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 99)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": 1}
    if kind == "string":
        return {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 5)}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": draw.choice(["^[a-f]{2,4}$", "^(yes|no)$", r"^\d+-\d{2}$"]),
        }
    if kind == "format":
        return {"type": "string", "format": draw.choice(["date", "time", "uuid", "ipv4"])}
    if kind == "array":
        return {"type": "array", "items": random_schema(draw, depth - 1), "minItems": draw.randint(0, 1), "maxItems": 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}
    if kind in ("object", "$ref"):
        names = draw.sample(["a", "b", "c d", "é", '"'], draw.randint(0, 3))
        inner = {name: random_schema(draw, depth - 1) for name in names}
        required = [name for name in names if draw.random() < 0.7]
        made: Any = {"type": "object", "properties": inner, "required": required, "additionalProperties": False}
        return made if kind == "object" or depth < 3 else {"$defs": {"x": made}, "$ref": "#/$defs/x"}
    return {"type": kind}


def test_two_hundred_random_schemas(bytes_running: Any) -> None:
    draw, ended = random.Random(1), 0
    with httpx.Client(base_url=bytes_running.url, timeout=60) as http:
        for place in range(200):
            schema = random_schema(draw)
            body = {
                "model": "bytes",
                "prompt": "hi",
                "max_tokens": 400,
                "temperature": 1,
                "seed": place,
                "guided_json": schema,
            }
            reply = http.post("/v1/completions", json=body).json()
            (choice,) = reply["choices"]
            if choice["finish_reason"] == "stop":
                ended += 1
                assert valid(choice["text"], schema), (schema, choice["text"])
            else:
                assert reply["usage"]["completion_tokens"] == 400, "only the limit cuts an answer"
    assert ended >= 190, "few are that long"


def test_a_stream_is_the_same(bytes_running: Any) -> None:
    whole = answer(bytes_running, seed=4, guided_json=SCHEMA)
    body = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300, "temperature": 1}
    body |= {"seed": 4, "guided_json": SCHEMA, "stream": True}
    text = httpx.post(f"{bytes_running.url}/v1/chat/completions", json=body, timeout=60).text
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole


def test_json_object_is_an_object(bytes_running: Any) -> None:
    body = {"response_format": {"type": "json_object"}, "logit_bias": {}, "temperature": 0}
    reply = httpx.post(
        f"{bytes_running.url}/v1/chat/completions",
        json={"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40} | body,
    ).json()
    assert reply["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize("name", ["guided_regex", "structured_outputs"])
def test_a_regex(bytes_running: Any, name: str) -> None:
    pattern = r"[a-f]{3}-[0-9]{2,4}é?"  # \d is every script's digits, and Python's list of them is older
    given = {name: pattern} if name == "guided_regex" else {name: {"regex": pattern}}
    assert re.fullmatch(pattern, answer(bytes_running, **given))


@pytest.mark.parametrize("name", ["guided_choice", "structured_outputs"])
def test_a_choice(bytes_running: Any, name: str) -> None:
    choices = ["yes", "no", 'per"haps\n', "öfter"]
    given = {name: choices} if name == "guided_choice" else {name: {"choice": choices}}
    found = {answer(bytes_running, seed=seed, **given) for seed in range(8)}
    assert found <= set(choices) and len(found) > 1
    assert answer(bytes_running, ignore_eos=True, guided_choice=["yes"]) == "yes", "a grammar goes before a ban"


@pytest.mark.parametrize("name", ["guided_grammar", "grammar"])
@pytest.mark.parametrize("text", ['start: ("a" | "b")~2 "c"', 'root ::= ("a" | "b") ("a" | "b") "c"'], ids=["lark", "gbnf"])
def test_a_grammar(bytes_running: Any, name: str, text: str) -> None:
    assert re.fullmatch("[ab]{2}c", answer(bytes_running, **{name: text}))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": "a(?=b)"}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"guided_json": {"$ref": "https://example.com/schema"}}, "guided_json"),
        ({"grammar": "start: nothing"}, "grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": 5}}}},
            "response_format",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_by_name(bytes_running: Any, options: dict[str, Any], param: str) -> None:
    body = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5} | options
    reply = httpx.post(f"{bytes_running.url}/v1/chat/completions", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param, reply.text
    assert "\n" not in reply.json()["error"]["message"]


def test_a_tokenizer_that_grammars_cannot_use_is_said(running: Any) -> None:
    body = {"model": "tiny", "prompt": "w1", "guided_regex": "a"}
    error = httpx.post(f"{running.url}/v1/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("guided_regex", "unsupported_value") and "tokenizer" in error["message"]


def test_masking_costs_little_at_fifty_thousand_tokens() -> None:
    """SmolLM2's tokenizer, 49,152 tokens: at most 5 ms of the processor for 95 of 100 tokens of a schema's answer."""
    import torch

    from veil.gateway.grammar import Grammars
    from veil.sources.models import load_model

    source = load_model("smollm2")
    tokenizer: Any = source.tokenizer
    matcher = Grammars(tokenizer, 49152, frozenset({2})).schema(SCHEMA, "guided_json").matcher()
    text = '{"name": "Anna", "age": 12, "kind": "é", "tags": [true, false]}'
    spent = []
    for token in tokenizer(text)["input_ids"]:
        start = time.thread_time()
        allowed = matcher.allowed(49152)
        scores = torch.zeros((1, 49152)).masked_fill(~allowed, -torch.inf)
        spent.append(time.thread_time() - start)
        assert scores[0, token] == 0
        matcher.take(token)
    assert matcher.over
    assert sorted(spent)[int(0.95 * len(spent))] < 0.005
