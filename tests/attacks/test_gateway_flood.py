"""Connections to the gateway that say nothing, or too slowly: they end, and do not keep others out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from veil.gateway import listen, prompt
from veil.gateway.guard import Access, Guard
from veil.gateway.listen import Listener
from veil.network.listening import listening

SLOW = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "headers without an end": b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
    "a body that does not come": b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
}


@contextmanager
def gateway() -> Iterator[int]:
    """A gateway's web server without a model."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/slow")
    async def slow(body: dict[str, str]) -> dict[str, str]:
        return body

    app.add_middleware(Guard, access=Access())
    with listening("127.0.0.1", 0) as opened:
        listener = Listener(app, opened)
        thread = threading.Thread(target=listener.serve_until_told)
        thread.start()
        try:
            yield int(opened.getsockname()[1])
        finally:
            listener.should_exit = True
            thread.join(10)


FIRST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ended(port: int, said: bytes, within_s: float, first: bytes = b"") -> bool:
    """Whether the gateway ends a connection on which no more than this is said, after a ``first`` request or without."""
    with socket.create_connection(("127.0.0.1", port), 5) as talk:
        talk.settimeout(within_s)
        if first:
            talk.sendall(first)
            assert talk.recv(1 << 16).startswith(b"HTTP/1.1 200")
        talk.sendall(said)
        end = time.monotonic() + within_s
        try:
            while time.monotonic() < end:
                if not talk.recv(1 << 16):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 5) as talk:
        talk.settimeout(5)
        talk.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return talk.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_request_that_does_not_come_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "REQUEST_S", 0.2)
    with gateway() as port:
        for name, said in SLOW.items():
            assert ended(port, said, 4), name
        assert ended(port, b"GET /hea", 4, FIRST)
        assert answers(port)
    monkeypatch.setattr(listen, "PromptProtocol", H11Protocol)
    with gateway() as port:
        assert not ended(port, b"", 0.5), "without the rule it stays for ever"


def test_many_silent_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "MOST_WAITING", 8)
    with gateway() as port:
        silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(40)]
        assert answers(port)
        gone = sum(map(_is_over, silent))
        assert gone >= 30
        for one in silent:
            one.close()


def _is_over(one: socket.socket) -> bool:
    one.settimeout(0.01)
    try:
        return not one.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_slow_answer_is_no_slow_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is when the request came; an answer of minutes keeps its connection."""
    monkeypatch.setattr(prompt, "REQUEST_S", 0.2)
    release = threading.Event()
    app = FastAPI()

    @app.get("/long")
    def long() -> dict[str, bool]:
        return {"done": release.wait(5)}

    with listening("127.0.0.1", 0) as opened:
        listener = Listener(app, opened)
        thread = threading.Thread(target=listener.serve_until_told)
        thread.start()
        try:
            with socket.create_connection(opened.getsockname(), 5) as talk:
                talk.sendall(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
                talk.settimeout(0.6)
                with pytest.raises(TimeoutError):
                    talk.recv(1)
                release.set()
                talk.settimeout(5)
                assert talk.recv(1 << 16).startswith(b"HTTP/1.1 200")
        finally:
            release.set()
            listener.should_exit = True
            thread.join(10)
