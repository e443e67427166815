"""``/tokenize``, ``/detokenize``, ``/health`` and ``/version``, in vLLM's shapes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from veil import __version__
from veil.gateway.guard import Access


@pytest.fixture
def http(bytes_running: Any) -> Any:
    with httpx.Client(base_url=bytes_running.url, timeout=20) as made:
        yield made


def test_a_text_there_and_back(http: Any, byte_tokenizer: Any) -> None:
    text = "é😀 <|mark|>\nx"
    made = http.post("/tokenize", json={"model": "bytes", "prompt": text, "return_token_strs": True}).json()
    assert made["tokens"] == byte_tokenizer(text)["input_ids"]
    assert (made["count"], made["max_model_len"]) == (len(made["tokens"]), 1024)
    assert made["token_strs"][:2] == ["\\xc3", "\\xa9"] and made["token_strs"][-3:] == ["<|mark|>", "\n", "x"]
    assert http.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": text}
    assert http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert http.post("/detokenize", json={"tokens": [262, 263]}).status_code == 200, "rows that have no token"


def test_a_chat_is_what_a_request_would_send(http: Any, bytes_running: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    made = http.post("/tokenize", json={"model": "bytes", "messages": messages}).json()
    assert made["tokens"] == bytes_running.gateway.served.chat_ids([("user", "hi")])
    body = {"model": "bytes", "messages": messages, "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] == made["count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "a" * 5_000_000}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": [264]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
    ],
    ids=str,
)
def test_refusals(http: Any, path: str, body: Any, status: int, param: str) -> None:
    reply = http.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


def test_health_needs_no_key_and_the_rest_does(byte_served: Any, listen: Any) -> None:
    with listen(byte_served, access=Access(api_key="secret")) as running:
        assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{running.url}/health", headers={"Host": "evil.example"}).status_code == 403
        assert httpx.get(f"{running.url}/version").status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{running.url}/version", headers=key).json() == {"version": __version__}
