"""`/v1/messages`: Anthropic's shape, streams, tools, stops, counts and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

BODY: dict[str, Any] = {"model": "bytes", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
CLOCK = {
    "name": "clock",
    "input_schema": {
        "type": "object",
        "properties": {"zone": {"enum": ["CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def http(bytes_running: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=bytes_running.url, timeout=20) as made:
        yield made


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for block in filter(None, text.split("\n\n")):
        kind, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


def test_words_whole_and_streamed(http: httpx.Client, bytes_running: Any, script: Any) -> None:
    script(bytes_running, "good day", "good day")
    system = [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}]
    reply = http.post("/v1/messages", json=BODY | {"system": system}).json()
    assert reply["content"] == [{"type": "text", "text": "good day", "citations": None}]
    assert (reply["type"], reply["role"], reply["stop_reason"]) == ("message", "assistant", "end_turn")
    usage = reply["usage"]
    counted = http.post("/v1/messages/count_tokens", json=_without(BODY, "max_tokens") | {"system": system}).json()
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted["input_tokens"]
    events = events_of(http.post("/v1/messages", json=BODY | {"stream": True}).text)
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == "good day"
    assert events[0]["message"]["usage"]["input_tokens"] + events[0]["message"]["usage"]["cache_read_input_tokens"] > 0


def test_stops(http: httpx.Client, bytes_running: Any, script: Any) -> None:
    script(bytes_running, "one two three")
    reply = http.post("/v1/messages", json=BODY | {"stop_sequences": ["three", " two"]}).json()
    assert (reply["content"][0]["text"], reply["stop_reason"], reply["stop_sequence"]) == ("one", "stop_sequence", " two")
    cut = http.post("/v1/messages", json=BODY | {"max_tokens": 2, "temperature": 0}).json()
    assert cut["stop_reason"] == "max_tokens" and cut["usage"]["output_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(
    http: httpx.Client, bytes_running: Any, script: Any, stream: bool
) -> None:
    call = {"name": "clock", "arguments": {"zone": "CET"}}
    script(bytes_running, f"Let me see. <tool_call>{json.dumps(call)}</tool_call>", "noon")
    asked = BODY | {"tools": [CLOCK], "stream": stream, "max_tokens": 200}
    reply = http.post("/v1/messages", json=asked)
    if stream:
        events = events_of(reply.text)
        blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        pieces = [event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta"]
        assert [block["type"] for block in blocks] == ["text", "tool_use"]
        assert blocks[1]["name"] == "clock" and json.loads("".join(pieces)) == {"zone": "CET"}
        assert [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"] == ["tool_use"]
        return
    words, made = reply.json()["content"]
    assert words["text"].strip() == "Let me see." and (made["name"], made["input"]) == ("clock", {"zone": "CET"})
    assert reply.json()["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": made["id"], "content": [{"type": "text", "text": "12"}]}
    turns = [
        *BODY["messages"],
        {"role": "assistant", "content": reply.json()["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    after = http.post("/v1/messages", json=BODY | {"tools": [CLOCK], "messages": turns}).json()
    assert after["content"][0]["text"] == "noon"


def test_a_tool_that_has_to_be_called_and_a_schema(http: httpx.Client) -> None:
    reply = http.post("/v1/messages", json=BODY | {"tools": [CLOCK], "tool_choice": {"type": "tool", "name": "clock"}})
    (call,) = reply.json()["content"]
    assert (call["name"], call["input"]) == ("clock", {"zone": "CET"})
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    wanted = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    words = http.post("/v1/messages", json=BODY | wanted).json()["content"][0]["text"]
    assert list(json.loads(words)) == ["a"]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"model": "other"}, 404, "not_found_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"temperature": 1.5}, 400, "invalid_request_error"),
        ({"unknown": 1}, 400, "invalid_request_error"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "invalid_request_error"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
        ({"tools": [CLOCK], "tool_choice": {"type": "tool"}}, 400, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]},
            400,
            None,
        ),
        ({"messages": [{"role": "user", "content": "a" * 2000}]}, 400, None),
    ],
    ids=str,
)
def test_errors_have_their_shape(http: httpx.Client, change: dict[str, Any], status: int, kind: str | None) -> None:
    reply = http.post("/v1/messages", json=BODY | change)
    body = reply.json()
    assert (reply.status_code, body["type"], body["error"]["type"]) == (status, "error", kind or "invalid_request_error")
    assert body["error"]["message"]


def test_the_other_header_for_keys(byte_served: Any, listen: Any) -> None:
    from veil.gateway.guard import Access

    with listen(byte_served, access=Access(api_key="right")) as running, httpx.Client(base_url=running.url) as http:
        assert http.post("/v1/messages", json=BODY | {"max_tokens": 1}, headers={"x-api-key": "right"}).status_code == 200
        wrong = http.post("/v1/messages", json=BODY, headers={"x-api-key": "wrong"})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}
