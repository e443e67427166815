"""A gateway whose server goes in the middle of an answer: it is said, clients are told, and it heals by itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
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
from veil.gateway.listen import Listener
from veil.gateway.served import ServedModel
from veil.network.listening import listening
from veil.network.timeouts import Timeouts
from waiting import until

BODY = {"model": "llama", "messages": [{"role": "user", "content": "w1 w2"}], "temperature": 0, "logit_bias": {"2": -100}}


def test_a_lost_server_is_said_and_the_next_request_works(
    llama: Any, serve: Any, monkeypatch: Any, capfd: Any, own_port: int
) -> None:
    monkeypatch.setattr(served_module, "GIVE_UP_S", 1.0)
    with serve(llama, port=own_port) as server:
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
    with serve(llama, port=own_port):
        until(lambda: served.lost_s is None)
        assert http.post("/v1/chat/completions", json=BODY | {"max_tokens": 2}).status_code == 200
        said = capfd.readouterr().err
        assert "does not answer" in said and "answers again" in said
        served.health.close()
        hybrid.close()


def without_end(route: Any) -> None:
    """The page's request, for an answer that a random model does not end soon."""
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True}))


def test_a_reader_is_told_and_goes_on(llama: Any, serve: Any, monkeypatch: Any, own_port: int) -> None:
    """A person at the page, in a real browser, while the server goes in the middle of an answer."""
    program = shutil.which("chromium")
    if program is None:
        reason = "chromium is not installed; on Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    patient = Timeouts(connect_s=60.0, reply_s=60.0, prepare_s=60.0, retry_s=3.0, pause_s=0.02)
    halfway, gone, calls = threading.Event(), threading.Event(), itertools.count()

    def hold(*_: object) -> None:
        if next(calls) == 40:
            halfway.set()
            gone.wait(120)

    with contextlib.ExitStack() as after:
        with serve(llama, port=own_port) as server:
            hybrid = llama.connect(server.port, timeouts=patient)
            after.callback(hybrid.close)
            served = ServedModel("llama", hybrid, hybrid.tokenizer, f"127.0.0.1:{server.port}")
            served.health = health_of(Address(target=f"127.0.0.1:{server.port}"), served)
            after.callback(served.health.close)
            opened = after.enter_context(listening("127.0.0.1", 0))
            listener = Listener(build_app(served), opened)
            gateway = threading.Thread(target=listener.serve_until_told)
            gateway.start()
            after.callback(gateway.join, 60)
            after.callback(setattr, listener, "should_exit", True)
            after.callback(gone.set)
            until(lambda: listener.started)
            browser = after.enter_context(sync_playwright()).chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            )
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.add_init_script('localStorage[\'veil.presets\'] = \'{"Default": {"max_tokens": 30, "temperature": 0}}\'')
            page.route("**/v1/chat/completions", without_end)
            page.goto(f"http://127.0.0.1:{opened.getsockname()[1]}")
            assert hybrid.sides.router is not None
            hybrid.sides.router.observer = hold
            page.locator("#status-text", has_text="Ready").wait_for()  # before that nothing is sent
            page.locator("#prompt").fill("w1 w2")
            page.keyboard.press("Enter")
            page.wait_for_function("() => document.querySelector('.turn.assistant .text')?.textContent.trim()")
            assert halfway.wait(60)
        monkeypatch.setattr(served_module, "GIVE_UP_S", 1.0)
        served.health.start()  # not before: a machine that others use may be slow to answer
        page.locator("#status-text", has_text="Server not reached").wait_for()
        page.locator("#waiting-for-server").wait_for()
        gone.set()
        page.locator(".ending[role=alert]").wait_for()
        assert page.locator(".turn.assistant .text").inner_text().strip(), "what was written stays"
        hybrid.sides.router.observer = None
        monkeypatch.setattr(served_module, "GIVE_UP_S", 600.0)
        with serve(llama, port=own_port):
            page.locator("#status-text", has_text="Ready").wait_for()
            page.get_by_role("button", name="Try again").click()
            page.locator(".turn.assistant:not(.writing) .arrows").wait_for()
            assert page.locator(".ending[role=alert]").count() == 0
            browser.close()


def test_reaching(llama: Any, serve: Any, refusing_port: int, other_grpc_server: int) -> None:
    assert not answers(Address(target=f"127.0.0.1:{refusing_port}"))
    assert answers(Address(target=f"127.0.0.1:{other_grpc_server}")), "somebody answers; what it is is asked elsewhere"
    with serve(llama) as server:
        assert answers(Address(target=f"127.0.0.1:{server.port}"))


@pytest.mark.parametrize("command", ["generate", "chat", "gateway"])
def test_an_unreachable_server_is_refused_before_anything_heavy(command: str, refusing_port: int) -> None:
    import os
    import subprocess
    import sys
    from pathlib import Path

    source = Path(__file__).parents[2] / "src"
    words = ["hi"] if command == "generate" else []
    code = "import sys; from veil.cli import app; app(standalone_mode=False)"
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, command, *words, "--server", f"127.0.0.1:{refusing_port}"],
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
