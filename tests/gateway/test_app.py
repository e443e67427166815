"""The rest of the API: status, announcements, a server that goes and comes back, encoders, and that nothing is logged."""

from __future__ import annotations

import base64
import logging
import struct
import threading
from typing import Any

import httpx
import pytest

from veil.errors import ServerUnreachable
from veil.gateway.guard import Access
from veil.gateway.served import SAMPLE_BYTES
from veil.params import packed_bytes
from waiting import until

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "w23 w6 w7"}], "temperature": 0, "max_tokens": 4}


@pytest.fixture
def http(running: Any) -> Any:
    with httpx.Client(base_url=running.url, timeout=20) as made:
        yield made


def test_status(http: Any, running: Any) -> None:
    http.post("/v1/chat/completions", json=BODY)
    assert running.idle()
    status = http.get("/veil/status").json()
    assert (status["model"], status["kind"], status["mode"], status["server"]) == ("tiny", "text", "execute", None)
    assert (status["running"], status["waiting"], status["context_length"]) == (0, 0, 128)
    head = running.gateway.served.hybrid.manifest.groups[-1]
    assert len(bytes.fromhex(status["sent"])) == min(SAMPLE_BYTES, packed_bytes(head.width, head.input_bits))
    assert status["totals"]["rows"] > 0 and status["totals"]["bytes_up_online"] > 0


def test_an_announced_prompt_finds_its_rows_ready(http: Any, running: Any, monkeypatch: Any) -> None:
    now = [1e9]
    monkeypatch.setattr(running.gateway, "clock", lambda: now[0])
    monkeypatch.setattr(running.gateway, "_expected", {})
    assert http.post("/veil/expect", json={"characters": 100, "new_tokens": 12}).json() == {"heeded": True}
    assert http.post("/veil/expect", json={"characters": 100}).json() == {"heeded": False}, "once in a while is enough"

    def ready() -> bool:
        status = http.get("/veil/status").json()
        return bool(status["rows_ready"] >= 12 and status["prompt_rows_ready"] >= 30)

    until(ready, state=lambda: http.get("/veil/status").json())
    used = http.post("/v1/chat/completions", json=BODY | {"messages": [{"role": "user", "content": "w8 " * 30}]}).json()[
        "usage"
    ]
    assert used["veil"]["rows_ready"] == used["veil"]["rows"] >= 30
    now[0] += 1
    assert http.post("/veil/expect", json={"characters": 1}).json() == {"heeded": True}
    for wrong in ({"characters": -1}, {"characters": 1 << 40}, {}, {"characters": 1, "new_tokens": -1}):
        assert http.post("/veil/expect", json=wrong).status_code == 400


def test_prompts_and_answers_are_not_logged(http: Any, running: Any, caplog: Any, capfd: Any, monkeypatch: Any) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "w31 w32 w33"
    body = BODY | {"messages": [{"role": "user", "content": secret}]}
    answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    http.post("/v1/chat/completions", json=body | {"temperature": secret})
    http.post("/v1/chat/completions", json=body | {"model": secret})
    http.post("/v1/completions", json={"model": "tiny", "prompt": secret, "stream": True})

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(secret)

    monkeypatch.setattr(running.gateway.generator._prefixes, "take", fail)
    broken = http.post("/v1/chat/completions", json=body)
    assert broken.status_code == 500
    assert secret not in broken.text and "KeyError" in broken.text
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "asyncio"))]
    assert any("KeyError" in record.getMessage() for record in ours), "the failure itself is logged"
    captured = capfd.readouterr()
    text = "\n".join([caplog.text, *(str(record.__dict__) for record in ours), captured.out, captured.err])
    assert secret not in text and answer not in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_down_is_503_and_the_next_request_works(http: Any, running: Any, stream: bool) -> None:
    router = running.gateway.served.hybrid.sides.router
    calls = [0]

    def down(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise ServerUnreachable("no usable answer from 192.0.2.1:8471 (refused); is 'veil serve' running there?")

    router.observer = down
    try:
        reply = http.post("/v1/chat/completions", json=BODY | {"stream": stream})
    finally:
        router.observer = None
    assert reply.status_code == 503 and reply.headers["retry-after"] == "5"
    error = reply.json()["error"]
    assert error["code"] == "server_unreachable" and "veil serve" in error["message"]
    assert http.post("/v1/chat/completions", json=BODY | {"stream": stream}).status_code == 200


def test_a_failure_in_the_middle_of_a_stream_is_an_event(http: Any, running: Any) -> None:
    router, calls = running.gateway.served.hybrid.sides.router, [0]

    def down(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > 30:
            raise ServerUnreachable("gone")

    router.observer = down
    try:
        lines = http.post("/v1/chat/completions", json=BODY | {"stream": True, "max_tokens": 50}).text.split("\n\n")
    finally:
        router.observer = None
    assert '"content"' in lines[0]
    assert '"code":"server_unreachable"' in lines[-2]
    assert "[DONE]" not in lines[-2]


def test_a_long_answer_leaves_turns_to_a_short_one(http: Any, running: Any) -> None:
    """The long one stops in its tenth forward pass until the short one waits, and for good a few passes later."""
    short: list[Any] = []

    def ask() -> None:
        short.append(http.post("/v1/chat/completions", json=BODY | {"max_tokens": 3}, timeout=60).json())

    asking, long = threading.Thread(target=ask), BODY | {"max_tokens": 100, "stream": True, "ignore_eos": True}
    with (
        running.held(after=90) as go_on,
        httpx.Client(base_url=running.url, headers={"User-Agent": "other"}, timeout=60) as other,
        other.stream("POST", "/v1/chat/completions", json=long) as stream,
    ):
        assert go_on.reached.wait(60)
        asking.start()
        until(lambda: running.gateway.generator._lock.wanted, what="a short answer that waits", state=running.state)
        with running.held_until_left(after=120):
            go_on.set()
            asking.join(60)
            assert short and short[0]["usage"]["completion_tokens"] == 3, "it does not wait for the long one"
            until(lambda: running.gateway.queue.running == 1, what="the long answer alone", state=running.state)
            stream.close()
            assert running.idle()


def test_the_same_callers_jobs_are_bounded_in_the_body(http: Any) -> None:
    reply = http.post("/v1/completions", json={"model": "tiny", "prompt": ["w1"] * 33, "n": 2})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "tiny", "messages": NaN}'])
def test_bodies_that_are_no_request(http: Any, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/veil/expect"):
        reply = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_an_encoder_makes_embeddings(serve_model: Any, listen: Any, tiny_tokenizer: Any) -> None:
    import openai
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    inputs = tiny_tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = model(input_ids=inputs).last_hidden_state[0].mean(0)
    expected = torch.nn.functional.normalize(hidden, dim=0)
    served = serve_model(model, tiny_tokenizer, name="encoder")
    with listen(served) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        assert (client.models.list().data[0].model_extra or {})["kind"] == "encoder"
        reply = client.embeddings.create(model="encoder", input=["w1 w2 w3", "w9"])
        vectors = [torch.tensor(item.embedding) for item in reply.data]
        assert len(vectors) == 2 and reply.usage.prompt_tokens == 4
        assert torch.nn.functional.cosine_similarity(vectors[0], expected, dim=0) > 0.99
        assert all(abs(float(vector.norm()) - 1) < 1e-5 for vector in vectors)
        raw = httpx.post(
            f"{running.url}/v1/embeddings",
            json={"model": "encoder", "input": inputs[0].tolist(), "encoding_format": "base64"},
        ).json()
        decoded = struct.unpack("<32f", base64.b64decode(raw["data"][0]["embedding"]))
        assert torch.nn.functional.cosine_similarity(torch.tensor(decoded), vectors[0], dim=0) > 0.99
        with pytest.raises(openai.BadRequestError, match="vectors of 32"):
            client.embeddings.create(model="encoder", input="w1", dimensions=8)
        with pytest.raises(openai.BadRequestError, match="encoder"):
            client.chat.completions.create(model="encoder", messages=[{"role": "user", "content": "w1"}])
        client.close()
    served.hybrid.close()


def test_a_model_without_a_chat_template(serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any) -> None:
    import copy

    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    served = serve_model(new_model("gpt2"), plain)
    with listen(served, access=Access()) as running:
        reply = httpx.post(f"{running.url}/v1/chat/completions", json=BODY)
        assert reply.status_code == 400 and "/v1/completions" in reply.json()["error"]["message"]
        assert httpx.post(f"{running.url}/v1/completions", json={"model": "tiny", "prompt": "w1 w2"}).status_code == 200
    served.hybrid.close()


def test_a_chat_template_that_fails_is_an_answer(serve_model: Any, listen: Any, new_model: Any, tiny_tokenizer: Any) -> None:
    import copy

    broken = copy.deepcopy(tiny_tokenizer)
    broken.chat_template = "{{ 1 // 0 }}"
    served = serve_model(new_model("gpt2"), broken)
    with listen(served, access=Access()) as running:
        reply = httpx.post(f"{running.url}/v1/chat/completions", json=BODY)
        assert reply.status_code == 400 and "the chat template of tiny fails" in reply.json()["error"]["message"]
    served.hybrid.close()
