"""Closing ends at once whatever is under way, also when the server is gone or silent."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from remote.processes import began
from remote.proxy import Cut, Direction, Proxy
from veil.client import remote as remote_module
from veil.client.session import OfflineRows
from veil.errors import ServerUnreachable
from veil.network.timeouts import Timeouts
from waiting import until

LONG = Timeouts(connect_s=5.0, reply_s=60.0, prepare_s=60.0, retry_s=60.0, pause_s=5.0)
SOON_S = 15.0


@pytest.fixture(autouse=True)
def short_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "GOODBYE_S", 0.2)


def closes_soon(remote: Any) -> None:
    start = time.monotonic()
    remote.close()
    assert time.monotonic() - start < SOON_S


def test_between_two_tries_of_an_upload(llama: Any, serve: Any) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port, timeouts=LONG, offline_rows=OfflineRows(tokens=0, prompt_rows=0))
    connection, renewed = remote.sides.remote.transport.offline, threading.Event()
    renew = connection.renew

    def renew_and_say() -> None:
        renew()
        renewed.set()

    connection.renew = renew_and_say
    remote.expect(1, 4)
    assert renewed.wait(10)  # by the first try, which failed
    closes_soon(remote)


def test_within_an_upload(llama: Any, serve: Any, proxy_to: Callable[[int], Proxy]) -> None:
    with serve(llama) as server:
        proxy = proxy_to(server.port)
        remote = llama.connect(proxy.port, timeouts=LONG, offline_rows=OfflineRows(tokens=0, prompt_rows=0))
        proxy.silent = True
        transport, began = remote.sides.remote.transport, threading.Event()
        upload = transport.offline.upload

        def begin(*args: Any) -> Any:
            began.set()
            return upload(*args)

        transport.offline.upload = begin
        remote.expect(1, 4)
        assert began.wait(10)
        closes_soon(remote)


@pytest.mark.parametrize("lane", [True, False])
def test_within_an_exchange_of_rows(lane: bool, llama: Any, serve: Any, proxy_to: Callable[..., Proxy]) -> None:
    """The thread that waits for the reply is told; no other stream is tried."""
    with serve(llama, rows_port=0 if lane else None) as server:
        proxy = proxy_to(server.service.rows_port if lane else server.port, plain=lane)
        if lane:
            server.service.rows_port = proxy.port
        remote = llama.connect(
            server.port if lane else proxy.port, timeouts=LONG, offline_rows=OfflineRows(tokens=4, prompt_rows=0)
        )
        session = remote.sides.remote
        until(lambda: session.background.full)
        said: list[str] = []

        def evaluate() -> None:
            width = session.model.manifest.groups[0].width
            try:
                for _ in range(4):
                    session.evaluate(0, np.ones((1, width), dtype=np.float32))
                    proxy.silent = True
            except ServerUnreachable as error:
                said.append(str(error))

        thread = threading.Thread(target=evaluate, daemon=True)
        thread.start()
        until(lambda: proxy.silent)
        closes_soon(remote)
        thread.join(SOON_S)
        assert said == ["the session was closed"]


def test_a_session_that_was_closed_makes_no_other(llama: Any, serve: Any) -> None:
    with serve(llama) as server:
        remote = llama.connect(server.port, offline_rows=OfflineRows(tokens=0, prompt_rows=0))
        session = remote.sides.remote
        remote.close()
        until(lambda: server.store.count == 0)
        with pytest.raises(ServerUnreachable, match="the session was closed"):
            session.reserve(full=1)
        assert server.store.count == 0


def test_an_interrupted_generation_ends_though_the_server_is_gone(
    llama: Any, serve: Any, proxy_to: Callable[[int], Proxy], refusing_port: int
) -> None:
    with serve(llama, rows_port=None) as server:
        proxy, gone = proxy_to(server.port), threading.Event()

        def harm(way: Direction, at: int, frame: bytes) -> bytes:
            if (way, at) == ("up", 40):
                proxy.target = refusing_port
                proxy.cut()
                gone.set()
                raise Cut
            return frame

        proxy.harm = harm
        half, target = llama.path / "client", f"127.0.0.1:{proxy.port}"
        process = began(
            "generate",
            "w23 w6 w7",
            "--server",
            target,
            "--bundle",
            half,
            "--max-new-tokens",
            "20",
            "--allow-no-cryptography",
        )
        try:
            assert gone.wait(60), process.communicate(timeout=5)
            until(lambda: proxy.refused > 1)  # it tries again
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, said = process.communicate(timeout=40)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 130, said
        assert said.splitlines()[-1] == "veil: interrupted"
        assert time.monotonic() - start < SOON_S
