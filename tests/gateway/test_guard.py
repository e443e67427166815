"""Who may come in: Host, Origin, key, size; and what every reply carries."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from veil.gateway.guard import MOST_BODY_BYTES, Access, Guard


@pytest.fixture
def http(running: Any) -> Any:
    with httpx.Client(base_url=running.url) as made:
        yield made


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("127.0.0.1:8472", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8472", True),
        ("my.box:8472", True),
        ("evil.example:8472", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("192.0.2.1", False),
        ("localhost:x", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_host_names(host: str, fine: bool) -> None:
    assert Access(hosts=("my.box",)).names(host) is fine


def test_listening_everywhere_takes_addresses_but_no_foreign_names() -> None:
    access = Access(host="0.0.0.0", api_key="k")
    assert access.names("192.0.2.1:8472") and access.names("[2001:db8::1]")
    assert not access.names("evil.example")


def test_others_can_reach_it_only_with_a_key() -> None:
    with pytest.raises(ValueError, match="--api-key"):
        Access(host="0.0.0.0")
    with pytest.raises(ValueError, match="printable"):
        Access(api_key="a\nb")
    access = Access(host="192.0.2.1", api_key="key")
    assert access.accepts("Bearer key") and access.accepts("bearer key")
    assert not any(map(access.accepts, (None, "", "key", "Bearer", "Bearer keys", "Basic key")))
    assert "key" not in repr(access)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_elsewhere_cannot_use_it(http: Any, headers: dict[str, str]) -> None:
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/veil/expect"),
        ("OPTIONS", "/v1/models"),
    ):
        reply = http.request(method, path, headers=headers, json={"model": "tiny"} if method == "POST" else None)
        assert reply.status_code == 403
        assert reply.json()["error"]["code"] in ("wrong_host", "wrong_origin")
        assert not any(name.lower().startswith("access-control") for name in reply.headers)


def test_the_own_page_can(http: Any, running: Any) -> None:
    headers = {"Origin": running.url, "Sec-Fetch-Site": "same-origin"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    assert http.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200, "a link to the page works"


def test_bodies_are_limited(http: Any) -> None:
    assert http.post("/v1/completions", content=b"x" * (MOST_BODY_BYTES + 1)).status_code == 413

    def pieces() -> Any:
        for _ in range(9):
            yield b" " * (1 << 20)

    try:
        reply = http.post("/v1/completions", content=pieces(), headers={"Content-Type": "application/json"})
    except (httpx.RemoteProtocolError, httpx.WriteError):
        return  # the connection was closed before everything was sent
    assert reply.status_code == 413


@pytest.mark.parametrize("path", ["/", "/page/style.css", "/v1/models", "/nothing", "/favicon.ico"])
def test_every_reply_carries_the_protective_headers(http: Any, path: str) -> None:
    headers = http.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["/page/__init__.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/", "/docs", "/redoc"]
)
def test_nothing_else_is_served(http: Any, path: str) -> None:
    reply = http.get(path)
    assert reply.status_code == 404
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_slash_at_the_end_of_a_path_changes_nothing(http: Any) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    assert http.post("/v1/completions/", json=body).json()["usage"]["completion_tokens"] == 1
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    assert http.get("/health/").status_code == http.get("//").status_code == 200
    assert http.get("/nothing/").status_code == 404
    assert http.get("/v1/completions/").status_code == 405


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_is_cancelled_is_told_that_the_gateway_stops(begun: bool) -> None:
    """What had begun only ends; nothing is raised into the web server, which would print it."""
    sent: list[Any] = []
    runs = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        runs.set()
        await receive()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def call() -> None:
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"host", b"127.0.0.1")]}
        task = asyncio.create_task(Guard(app, Access())(scope, receive, send))
        await runs.wait()
        task.cancel()
        await task

    asyncio.run(call())
    assert sent[0]["status"] == (200 if begun else 503)
    if not begun:
        assert json.loads(sent[1]["body"])["error"]["message"] == "the gateway is stopping; try again later"
    assert len(sent) == (1 if begun else 2)
