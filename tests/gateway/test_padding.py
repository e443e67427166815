"""A gateway that hides lengths: replies come when answers are over, and the server is asked on, whoever waits or left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from veil.runtime.padding import Padding
from veil.runtime.router import Router
from waiting import until


def body(tokens: int, **options: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "w1 w2 w3", "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | options


def passes(served: Any, use: Callable[[], object], idle: Callable[[], bool]) -> tuple[int, int]:
    """Messages and rows that the server got while something was done, and after it."""
    before = served.hybrid.stats.copy()
    use()
    assert idle()
    spent = served.hybrid.stats - before
    return spent.trips, spent.bytes_up_online


def test_a_reply_does_not_wait_for_what_follows_its_answer(
    padded: Any, listen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    finish = Router.finish

    def held(router: Router, *args: Any) -> None:
        assert go_on.wait(20)
        finish(router, *args)

    monkeypatch.setattr(Router, "finish", held)
    stop = ["w"]  # ends the first answer's text early; the answer goes on to 8 of 16 tokens at most
    with listen(padded) as running:
        for options in ({"stop": stop}, {"stop": stop, "stream": True}):
            go_on.clear()
            reply = httpx.post(f"{running.url}/v1/completions", json=body(16, **options), timeout=20)
            assert reply.status_code == 200
            assert running.gateway.queue.running == 1, "it goes on for the server"
            go_on.set()
            assert running.idle()
        usage = httpx.post(f"{running.url}/v1/completions", json=body(16, stop=stop), timeout=20).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert running.idle()


def test_who_goes_away_does_not_end_the_answer(padded: Any, listen: Callable[..., Any]) -> None:
    with listen(padded) as running:
        url = f"{running.url}/v1/completions"

        def stays() -> None:
            httpx.post(url, json=body(8), timeout=20)

        def leaves() -> None:
            with httpx.stream("POST", url, json=body(8, stream=True), timeout=20) as reply:
                next(reply.iter_bytes())

        def leaves_at_once() -> None:
            with running.post("/v1/completions", body(8)):
                until(lambda: padded.hybrid.stats.trips > before, what="a begun answer", state=running.state)

        views = []
        for use in (stays, leaves, leaves_at_once):
            before = padded.hybrid.stats.trips
            views.append(passes(padded, use, running.idle))
    assert views[0] == views[1] == views[2]


def test_a_prompt_leaves_a_step_free(padded: Any, listen: Callable[..., Any]) -> None:
    context = padded.context_length
    assert [padded.room(n) for n in (1, 8, 9)] == [context - 8, context - 8, context - 16]
    assert padded.room(context - 8) == padded.room(context - 9) == 8
    with listen(padded) as running:
        prompt = [5] * (context - 7)
        reply = httpx.post(f"{running.url}/v1/completions", json=body(1, prompt=prompt), timeout=20)
    assert reply.status_code == 400 and "context" in reply.text


def test_a_gateway_that_stops_does_not_wait_for_zeros(padded: Any, listen: Callable[..., Any]) -> None:
    padded.hybrid.padding = Padding(step=8, whole_answers=True)
    with listen(padded) as running:
        httpx.post(f"{running.url}/v1/completions", json=body(900, stop=["w"]), timeout=20)
        assert running.gateway.queue.running == 1
    assert running.gateway.queue.running == 0
    padded.hybrid.padding = Padding(step=8)
