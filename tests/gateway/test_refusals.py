"""What cannot be answered is refused in OpenAI's shape, by the right name, whatever is sent; nothing ends in a traceback."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import httpx
import pytest

CHAT = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "bytes", "prompt": "hi", "max_tokens": 2}
INPUT = {"model": "bytes", "input": "hi"}
PATHS: dict[str, dict[str, Any]] = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT, "/v1/embeddings": INPUT}


@pytest.fixture
def http(bytes_running: Any) -> Any:
    with httpx.Client(base_url=bytes_running.url, timeout=20) as made:
        yield made


def refused(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    body = json.loads(reply.text)
    assert list(body) == ["error"] and list(body["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = body["error"]
    return error


def raw(http: Any, path: str, text: str) -> httpx.Response:
    reply: httpx.Response = http.post(path, content=text, headers={"Content-Type": "application/json"})
    return reply


# What nobody foresaw ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_nobody_foresaw_has_an_id_that_the_log_has(
    http: Any, bytes_running: Any, monkeypatch: Any, caplog: Any, stream: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(bytes_running.gateway.served.net, "generate", fail)
    reply = http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    error = refused(reply, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal")
    assert "ZeroDivisionError" in error["message"] and "secret" not in error["message"]
    id = reply.headers["x-request-id"]
    assert id in error["message"]
    assert any(id in record.getMessage() and "secret" not in record.getMessage() for record in caplog.records)


def test_an_error_outside_the_generation_has_one_too(
    http: Any, bytes_running: Any, monkeypatch: Any, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(bytes_running.gateway, "status", fail)
    reply = http.get("/veil/status")
    assert reply.headers["x-request-id"] in refused(reply, 500)["message"]
    assert reply.headers["content-security-policy"], "the headers that protect the page are there too"
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("veil.gateway.app.sampling_of", fail)
    assert "ZeroDivisionError" in refused(http.post("/v1/completions", json=TEXT), 500)["message"]


def test_an_error_in_the_middle_of_a_stream_is_an_event_with_an_id(http: Any, bytes_running: Any, monkeypatch: Any) -> None:
    from veil.gateway.transcript import Transcript

    add, calls = Transcript.add, [0]

    def fail(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        return add(*given, **named) if calls[0] < 3 else 1 // 0

    monkeypatch.setattr(Transcript, "add", fail)
    body = CHAT | {"stream": True, "max_tokens": 9, "logit_bias": {"65": 100}}
    events = http.post("/v1/chat/completions", json=body).text.strip().split("\n\n")
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "internal" and "req-" in error["message"]
    assert '"content"' in events[0]


def test_other_methods_and_paths(http: Any) -> None:
    assert refused(http.get("/v1/chat/completions"), 405)["type"] == "invalid_request_error"
    assert refused(http.post("/v1/nothing", json={}), 404)["code"] == "not_found"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/bytes", "/veil/status", "/openapi.json"])
def test_head_is_get_without_a_body(http: Any, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert http.head("/v1/models/nobody").status_code == 404
    assert http.head("/v1/completions").status_code == 405


# Texts and numbers that JSON does not have -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("half", ["\\ud800", "a\\udfffb", "\\udc00\\ud800"])
def test_half_a_character_is_refused_by_its_place(http: Any, path: str, half: str) -> None:
    body = json.dumps(PATHS[path]).replace('"hi"', f'"{half}"')
    error = refused(raw(http, path, body))
    assert "surrogate" in error["message"]
    assert error["param"] == {"/v1/chat/completions": "messages"}.get(path) or error["param"] in ("prompt", "input")
    assert refused(raw(http, path, json.dumps(PATHS[path]).replace('"bytes"', f'"{half}"')))["param"] == "model"
    assert refused(raw(http, path, json.dumps(PATHS[path])[:-1] + f', "{half}": 1}}'))


def test_a_pair_of_surrogates_is_a_character(http: Any) -> None:
    reply = raw(http, "/v1/completions", json.dumps(TEXT | {"prompt": "😀"}))
    assert reply.json()["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "max_tokens"])
def test_numbers_that_are_none_are_refused_by_name(http: Any, name: str, number: str) -> None:
    body = json.dumps({key: value for key, value in TEXT.items() if key != name})[:-1] + f', "{name}": {number}}}'
    assert refused(raw(http, "/v1/completions", body))["param"] == name
    biased = json.dumps(TEXT)[:-1] + f', "logit_bias": {{"5": {number}}}}}'
    assert refused(raw(http, "/v1/completions", biased))["param"] == "logit_bias"


def test_huge_integers_and_deep_nesting(http: Any) -> None:
    for text in ('"seed": ' + "9" * 5000, '"seed": ' + "9" * 400, '"metadata": ' + "[" * 100_000 + "]" * 100_000):
        refused(raw(http, "/v1/completions", json.dumps(TEXT)[:-1] + f", {text}}}"))
    assert (
        refused(http.post("/v1/completions", json=TEXT | {"logit_bias": {"0" * 12 + "99999999": 1}}))["param"]
        == "logit_bias"
    )


# Names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "param", "said"),
    [
        ("/v1/completions", {"prompt": [1, 2, "a"]}, "prompt", "prompt.2: Input should be a valid integer"),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt", "prompt.1: Input should be a valid string"),
        ("/v1/completions", {"prompt": [[1, -1]]}, "prompt", "prompt.0.1: Input should be greater than or equal to 0"),
        ("/v1/completions", {"prompt": [True]}, "prompt", "prompt.0: Input should be a valid integer"),
        ("/v1/completions", {"prompt": 5}, "prompt", "prompt: it has to be a text, a list of texts, or one or several"),
        ("/v1/completions", {"prompt": {}}, "prompt", "prompt: it has to be a text"),
        ("/v1/completions", {"prompt": []}, "prompt", "prompt: List should have at least 1 item"),
        ("/v1/completions", {"prompt": [260, 264]}, "prompt", "token ids are below 264"),
        ("/v1/embeddings", {"input": [1.5]}, "input", "input.0: Input should be a valid string"),
        ("/v1/completions", {"stop": ["a", 5]}, "stop", "stop.1: Input should be a valid string"),
        ("/v1/completions", {"stop": 5}, "stop", "stop: it has to be a text or a list of up to four"),
        ("/v1/completions", {"stop": list("abcde")}, "stop", "stop: List should have at most 4 items"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages",
            "messages.0.content.0.text: Input should be a valid string",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": 5}]},
            "messages",
            "messages.0.content: it has to be a text or a list of parts",
        ),
        ("/v1/chat/completions", {"tool_choice": "maybe"}, "tool_choice", "tool_choice: Input should be 'none', 'auto' or"),
        ("/v1/chat/completions", {"tool_choice": 5}, "tool_choice", "tool_choice: it has to be none, auto, required, or"),
        ("/v1/chat/completions", {"top_kk": 5}, "top_kk", "top_kk: the gateway has no parameter 'top_kk'"),
        ("/v1/chat/completions", {"stream_options": {"often": 1}}, "stream_options", "no parameter 'often'"),
        ("/v1/chat/completions", {"stop-ids": [1]}, None, "no parameter 'stop-ids'"),
        ("/v1/chat/completions", {"functions": []}, "functions", "no parameter 'functions'"),
        (
            "/v1/chat/completions",
            {"reasoning_effort": "high"},
            "reasoning_effort",
            "reasoning_effort: Input should be 'none'",
        ),
        ("/v1/chat/completions", {"top_k": -2}, "top_k", "top_k: "),
        ("/v1/chat/completions", {"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty: "),
        ("/v1/chat/completions", {"typical_p": 0}, "typical_p", "typical_p: "),
        ("/v1/chat/completions", {"stop_token_ids": [264]}, "stop_token_ids", "token ids are below 264"),
        ("/v1/chat/completions", {"min_tokens": 3}, "min_tokens", "above the answer's limit of 2"),
        (
            "/v1/chat/completions",
            {"chat_template_kwargs": {"tokenize": False}},
            "chat_template_kwargs",
            "tokenize is no var",
        ),
    ],
)
def test_the_error_is_about_what_is_wrong(http: Any, path: str, options: dict[str, Any], param: str, said: str) -> None:
    error = refused(http.post(path, json=PATHS[path] | options))
    if path == "/v1/embeddings":
        assert error["message"].startswith("input.0: ")
        return
    assert said in error["message"]
    assert error["param"] == param


def test_nulls_say_nothing(http: Any) -> None:
    body = CHAT | {"functions": None, "audio": None, "stop": None, "top_k": None}
    body["messages"] = [{"role": "user", "content": "hi", "audio": None, "function_call": None}]
    assert http.post("/v1/chat/completions", json=body).status_code == 200


# Sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1 << 20, (1 << 20) + 1, 10**12, 10**30])
def test_more_tokens_than_there_is_room_for_are_as_many_as_there_are(http: Any, most: int) -> None:
    body = TEXT | {"max_tokens": most, "prompt": [1] * 1021, "ignore_eos": True}
    reply = http.post("/v1/completions", json=body).json()
    assert reply["usage"]["completion_tokens"] == 3 and reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("piece", ["x", "word and word "])
def test_a_prompt_of_megabytes_is_refused_by_its_first_pieces(http: Any, path: str, piece: str) -> None:
    body = json.dumps(PATHS[path]).replace('"hi"', json.dumps(piece * (7_000_000 // len(piece))))
    error = refused(raw(http, path, body))
    assert error["code"] == "context_length_exceeded"
    assert "more than" in error["message"], "the counting stopped; all of it takes many seconds"


def test_millions_of_token_ids_are_refused_quickly(http: Any) -> None:
    start = time.monotonic()
    for prompt in ([1] * 2_000_000, ["a"] * 1_000_000, [[1]] * 1_000_000):
        assert refused(http.post("/v1/completions", json=TEXT | {"prompt": prompt}))["param"] == "prompt"
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(("prompt", "param"), [([0.5, 1], "prompt.0"), ([[1.5]], "prompt.0.0"), ([1, "a"], "prompt.1")])
def test_token_ids_that_are_no_whole_numbers_are_not_called_texts(http: Any, prompt: Any, param: str) -> None:
    """Tried by hand: '[0.5]' was told that it should be a valid string."""
    error = refused(http.post("/v1/completions", json=TEXT | {"prompt": prompt}))
    assert error["message"].startswith(f"{param}: Input should be a valid integer")


def test_a_place_is_named_once(http: Any) -> None:
    error = refused(http.post("/tokenize", json={"": False}))
    assert error["message"] == "the body: the gateway has no parameter ''"
    error = refused(http.post("/v1/chat/completions", json=CHAT | {"response_format": {"type": "json_schema"}}))
    assert error["message"] == "response_format.json_schema: Field required"


def test_a_text_part_without_text_is_not_called_another_kind(http: Any) -> None:
    error = refused(
        http.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": [{"type": "text"}]}]})
    )
    assert error["message"] == "messages.0: a part of type text has no text"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_said_to_be_json_is_told_how(http: Any, kind: str | None) -> None:
    """curl -d without a header sends a form. Tried by hand: 'Input should be a valid dictionary'."""
    headers = {} if kind is None else {"Content-Type": kind}
    error = refused(http.post("/v1/completions", content=json.dumps(TEXT), headers=headers))
    assert error["message"].endswith("send the header Content-Type: application/json")
    assert (
        http.post("/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": "application/json"}).status_code
        == 200
    )
