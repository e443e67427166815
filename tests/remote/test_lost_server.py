"""A gateway whose server goes in the middle of an answer: it is said, clients are told, and it heals by itself."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from veil.client.connection import Address
from veil.client.reach import answers
from veil.commands.model_choice import health_of
from veil.gateway import served as served_module
from veil.gateway.app import build_app
from veil.gateway.served import ServedModel
from waiting import until

BODY = {"model": "llama", "messages": [{"role": "user", "content": "w1 w2"}], "temperature": 0, "logit_bias": {"2": -100}}


def test_a_lost_server_is_said_and_the_next_request_works(
    llama: Any, serve: Any, monkeypatch: Any, capfd: Any, free_port: int
) -> None:
    monkeypatch.setattr(served_module, "GIVE_UP_S", 1.0)
    with serve(llama, port=free_port) as server:
        hybrid = llama.connect(server.port)
        served = ServedModel("llama", hybrid, hybrid.tokenizer, f"127.0.0.1:{server.port}")
        served.health = health_of(Address(target=f"127.0.0.1:{server.port}"), served)
        served.health.start()
        http = TestClient(build_app(served), base_url="http://127.0.0.1")
        assert http.post("/v1/chat/completions", json=BODY | {"max_tokens": 2}).status_code == 200
        assert http.get("/veil/status").json()["server_lost_s"] is None
        replies: list[Any] = []
        asking = threading.Thread(
            target=lambda: replies.append(http.post("/v1/chat/completions", json=BODY | {"max_tokens": 110}))
        )
        hybrid.cancel_check, begun = None, hybrid.stats.trips
        asking.start()
        until(lambda: hybrid.stats.trips > begun + 20)
    stopped = time.monotonic()
    until(lambda: served.lost_s is not None)
    assert http.get("/veil/status").json()["server_lost_s"] >= 0
    asking.join(60)
    assert not asking.is_alive() and time.monotonic() - stopped < 60
    reply = replies[0]
    assert reply.status_code == 503 and reply.headers["retry-after"], reply.text
    start = time.monotonic()
    refused = http.post("/v1/chat/completions", json=BODY | {"max_tokens": 2})
    assert refused.status_code == 503 and time.monotonic() - start < 30
    with serve(llama, port=free_port):
        until(lambda: served.lost_s is None)
        assert http.post("/v1/chat/completions", json=BODY | {"max_tokens": 2}).status_code == 200
        said = capfd.readouterr().err
        assert "does not answer" in said and "answers again" in said
        served.health.close()
        hybrid.close()


def test_reaching(llama: Any, serve: Any, free_port: int, other_grpc_server: int) -> None:
    assert not answers(Address(target=f"127.0.0.1:{free_port}"))
    assert answers(Address(target=f"127.0.0.1:{other_grpc_server}")), "somebody answers; what it is is asked elsewhere"
    with serve(llama) as server:
        assert answers(Address(target=f"127.0.0.1:{server.port}"))


@pytest.mark.parametrize("command", ["generate", "chat", "gateway"])
def test_an_unreachable_server_is_refused_before_anything_heavy(command: str, free_port: int) -> None:
    import os
    import subprocess
    import sys
    from pathlib import Path

    source = Path(__file__).parents[2] / "src"
    words = ["hi"] if command == "generate" else []
    code = "import sys; from veil.cli import app; app(standalone_mode=False)"
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, command, *words, "--server", f"127.0.0.1:{free_port}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
        timeout=60,
    )
    lines = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert "is 'veil serve' running there" in lines[-1], run.stderr
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert not {"torch", "transformers", "numba"} & loaded
    assert time.monotonic() - start < 20
