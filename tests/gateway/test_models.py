"""Several models under names and aliases; several keys, whose conversations are apart; pages elsewhere that are let in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from veil.gateway.guard import Access
from veil.gateway.keys import Keys
from veil.gateway.models import Models

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "w1 w2 w3 w4 w5 w6"}], "max_tokens": 2, "temperature": 0}
PAGE = "https://chat.example.org"


@pytest.fixture(scope="module")
def two(served: Any, byte_served: Any) -> Any:
    from veil.gateway.app import build_app

    return build_app([served, byte_served], aliases={"gpt-4o": "tiny", "small": "bytes"})


@pytest.fixture
def http(two: Any) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(two, base_url="http://127.0.0.1")


def test_each_model_answers_to_its_names(http: Any) -> None:
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["tiny", "gpt-4o", "bytes", "small"]
    assert http.get("/v1/models/small").json()["context_length"] == 1024
    for name, model in {"tiny": "tiny", "gpt-4o": "tiny", "bytes": "bytes", "small": "bytes"}.items():
        reply = http.post("/v1/chat/completions", json=ASK | {"model": name})
        assert (reply.status_code, reply.json()["model"]) == (200, model)
    assert http.post("/v1/chat/completions", json=ASK | {"model": "other"}).status_code == 404
    assert http.post("/tokenize", json={"model": "small", "prompt": "abc"}).json()["count"] == 3
    assert http.get("/veil/status?model=bytes").json()["context_length"] == 1024
    assert http.get("/veil/status").json()["models"] == ["tiny", "bytes"]
    assert http.get("/veil/status?model=other").status_code == 404


def test_names_that_do_not_fit(served: Any, byte_served: Any) -> None:
    for models, aliases, words in (
        ([], {}, "needs a model"),
        ([served, served], {}, "two models"),
        ([served], {"tiny": "tiny"}, "two models"),
        ([served], {"a": "b"}, "no model 'b'"),
    ):
        with pytest.raises(ValueError, match=words):
            Models(models, aliases)


# Keys ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in ("anna", "bert")]
    path = tmp_path / "keys"
    path.write_text(f"# whose\n{digests[0]} Anna\n{digests[1]}\n")
    return path


def test_keys_are_known_by_their_digests(key_file: Path) -> None:
    keys = Keys.read("own", key_file)
    assert keys.count == 3
    owners = [keys.owner(key) for key in ("own", "anna", "bert")]
    assert owners == [hashlib.sha256(key.encode()).hexdigest() for key in ("own", "anna", "bert")]
    assert [keys.owner(key) for key in ("", "ann", "carl", owners[1] or "")] == [None] * 4
    assert Keys().owner("whatever") == "" and not Keys()
    with pytest.raises(ValueError, match="cannot be read"):
        Keys.read(None, key_file / "x")
    key_file.write_text("anna\n")
    with pytest.raises(ValueError, match="SHA-256"):
        Keys.read(None, key_file)


def test_a_key_learns_nothing_of_anothers_conversations(served: Any, key_file: Path) -> None:
    from fastapi.testclient import TestClient

    from veil.gateway.app import build_app

    http = TestClient(build_app(served, Access(keys=Keys.read(None, key_file))), base_url="http://127.0.0.1")

    def cached(key: str, path: str = "/v1/chat/completions") -> int:
        reply = http.post(path, json=ASK | {"model": "tiny"}, headers={"Authorization": f"Bearer {key}"})
        return int(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert (cached("anna"), cached("bert")) == (0, 0), "the same prompt, by another: its rows go up once more"
    assert cached("anna") > 0 and cached("bert") > 0
    assert http.get("/v1/models").status_code == 401
    made = http.post(
        "/v1/responses", json={"model": "tiny", "input": "w1", "max_output_tokens": 1}, headers={"x-api-key": "anna"}
    ).json()
    for key, status in (("anna", 200), ("bert", 404)):
        assert http.get(f"/v1/responses/{made['id']}", headers={"x-api-key": key}).status_code == status


# Pages elsewhere -------------------------------------------------------------------------------------------------------


def test_a_page_that_is_let_in(served: Any) -> None:
    from fastapi.testclient import TestClient

    from veil.gateway.app import build_app

    http = TestClient(build_app(served, Access(api_key="k", origins=(PAGE,))), base_url="http://127.0.0.1")
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before = http.options("/v1/chat/completions", headers=asked)
    assert before.status_code == 204 and before.headers["access-control-allow-origin"] == PAGE
    assert before.headers["access-control-allow-headers"] == "authorization"
    assert "POST" in before.headers["access-control-allow-methods"] and before.headers["vary"] == "Origin"
    for headers, status in (({}, 401), ({"Authorization": "Bearer k"}, 200)):
        reply = http.get("/v1/models", headers={"Origin": PAGE, "Sec-Fetch-Site": "cross-site", **headers})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, PAGE)
    other = http.options("/v1/models", headers=asked | {"Origin": "https://evil.example"})
    assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["example.org", "https://", "ftp://a", "https://a/b", "null"])
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        Access(origins=(origin,))


def test_any_page_needs_a_key() -> None:
    with pytest.raises(ValueError, match="--api-key"):
        Access(origins=("*",))
    assert Access(origins=("*",), api_key="k").allows("https://anywhere.example")


# Metrics ---------------------------------------------------------------------------------------------------------------


def test_metrics(http: Any) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "abcdefghij"}], "max_tokens": 2}

    def values() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = values()
    prompt = http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    http.get("/v1/models/abcdefghij")
    http.get("/abcdefghij")
    after = values()

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grew('veil_gateway_tokens_total{kind="prompt",model="bytes"}') == prompt
    assert grew('veil_gateway_tokens_total{kind="new",model="bytes"}') == 2
    assert grew('veil_gateway_replies_total{route="/v1/chat/completions",status="200"}') == 1
    assert grew('veil_gateway_replies_total{route="/v1/models/{model:path}",status="404"}') == 1
    assert grew('veil_gateway_replies_total{route="other",status="404"}') == 1
    assert after['veil_gateway_server_up{model="bytes"}'] == 1 and after["veil_gateway_running"] == 0
    assert not any("abcdefghij" in name for name in after)
