"""Prefill while typing: what goes up before a message is sent, and that it is not sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from veil.cli import app
from veil.gateway.app import Settings
from veil.runtime.padding import Padding

WORDS = " ".join(f"w{number}" for number in range(30))


@pytest.fixture(scope="module")
def gateway(served: Any, listen: Any) -> Iterator[Any]:
    with listen(served, settings=Settings(eager=True)) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(gateway: Any) -> None:
    gateway.gateway.generator.forget()


def prefill(gateway: Any, words: str, **options: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}]} | options
    return httpx.post(f"{gateway.url}/veil/prefill", json=body)


def ask(gateway: Any, words: str) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": 3}
    reply: dict[str, Any] = httpx.post(f"{gateway.url}/v1/chat/completions", json=body).json()
    return reply


def test_finished_words_go_up_once(gateway: Any) -> None:
    plain = ask(gateway, WORDS)
    gateway.gateway.generator.forget()
    assert prefill(gateway, "w0 w1 w2").json() == {"tokens": 4, "sent": 4}, "<user> and three words"
    assert prefill(gateway, "w0 w1 w2").json() == {"tokens": 4, "sent": 0}
    assert prefill(gateway, WORDS).json() == {"tokens": 31, "sent": 27}
    reply = ask(gateway, WORDS)
    assert reply["choices"] == plain["choices"], "the same answer"
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 31
    assert reply["usage"]["veil"]["rows"] == 2 + 2, "the end of the turn, and the answer's tokens but the last"
    assert plain["usage"]["veil"]["rows"] == 33 + 2


def test_a_word_that_is_changed_goes_up_anew(gateway: Any) -> None:
    prefill(gateway, "w0 w1 w2 w3")
    assert prefill(gateway, "w0 w1 w9 w3").json() == {"tokens": 5, "sent": 2}


def test_a_long_beginning_goes_up_in_pieces(gateway: Any) -> None:
    before = gateway.gateway.generator.totals.rows
    assert prefill(gateway, " ".join(["w1 w2"] * 45)).json() == {"tokens": 91, "sent": 91}
    assert gateway.gateway.generator.totals.rows - before == 91


def test_nothing_goes_up_unless_it_was_asked_for(running: Any) -> None:
    assert httpx.get(f"{running.url}/veil/status").json()["eager"] is False
    before = running.gateway.generator.totals.rows
    reply = prefill(running, "w0 w1")
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_eager")
    assert running.gateway.generator.totals.rows == before


def test_only_a_users_text_can_be_begun(gateway: Any) -> None:
    reply = prefill(gateway, "", messages=[{"role": "assistant", "content": "w1"}])
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages")


def test_with_padding_whole_steps_go_up(padded: Any, listen: Any) -> None:
    with listen(padded, settings=Settings(eager=True)) as running:
        plain = ask(running, WORDS)
        assert running.idle()
        assert prefill(running, "w0 w1 w2 w3 w4 w5").json() == {"tokens": 7, "sent": 0}
        assert prefill(running, "w0 w1 w2 w3 w4 w5 w6").json() == {"tokens": 8, "sent": 8}
        assert prefill(running, WORDS).json() == {"tokens": 31, "sent": 16}
        typed = ask(running, WORDS)
        assert running.idle()
        assert typed["choices"] == plain["choices"], "the same answer"
        assert typed["usage"]["prompt_tokens_details"]["cached_tokens"] == 24
        assert plain["usage"]["veil"]["rows"] - typed["usage"]["veil"]["rows"] == 24, "the same in all"
        again = ask(running, WORDS)
        assert running.idle()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "what was typed serves one message"


def test_with_padding_messages_of_one_step_look_the_same(padded: Any, listen: Any) -> None:
    views = set()
    with listen(padded, settings=Settings(eager=True)) as running:
        for count in (9, 11, 12):
            before, words = padded.hybrid.stats.copy(), [f"w{number}" for number in range(count)]
            for written in range(1, count + 1):
                prefill(running, " ".join(words[:written]))
            ask(running, " ".join(words))
            assert running.idle()
            spent = padded.hybrid.stats - before
            views.add((spent.trips, spent.rows, spent.bytes_up_online))
    assert len(views) == 1


def test_what_is_typed_does_not_go_with_powers(padded: Any, listen: Any) -> None:
    padded.hybrid.padding = Padding(step=8, powers=True)
    try:
        with listen(padded, settings=Settings(eager=True)) as running:
            assert prefill(running, WORDS).status_code == 400
    finally:
        padded.hybrid.padding = Padding(step=8)
    done = CliRunner().invoke(app, ["gateway", "--pad", "powers", "--eager-prompt"])
    assert done.exit_code == 2 and "--pad 64" in done.output
