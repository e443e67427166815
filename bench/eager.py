"""A message of 200 words: seconds from Enter to the first token, sent whole and with its rows going up while it is typed."""

from __future__ import annotations

import time
from typing import Any

from fastapi.testclient import TestClient

from veil.commands.choice import ModelChoice
from veil.commands.model_choice import opened
from veil.gateway.app import Settings, build_app

WORDS_A_SECOND = 6
"""Twice as fast as quick typists."""

TEXT = "When people wrote letters they sealed them with wax so that nobody on the way could read what was inside. "


def main() -> None:
    """Print a line for each way, three times."""
    with opened(ModelChoice()) as served:
        app = build_app(served, settings=Settings(eager=True))
        http = TestClient(app, base_url="http://127.0.0.1")
        for turn in range(3):
            words = [f"Round {turn}.", *(TEXT * 11).split()[:199]]
            app.state.gateway.generator.forget()
            print(f"whole: {_first_token_s(http, served.name, words):.2f} s")
            app.state.gateway.generator.forget()
            _type(http, served.name, words)
            print(f"typed: {_first_token_s(http, served.name, words):.2f} s after Enter")


def _type(http: TestClient, model: str, words: list[str]) -> None:
    """Send the finished words again and again, as the page does, until all but the last are written."""
    begun, sent = time.monotonic(), 0
    while sent < len(words) - 1:
        written = min(len(words) - 1, int((time.monotonic() - begun) * WORDS_A_SECOND))
        if written > sent:
            http.post("/veil/prefill", json={"model": model, "messages": _messages(words[:written])}).raise_for_status()
            sent = written
        else:
            time.sleep(0.01)


def _first_token_s(http: TestClient, model: str, words: list[str]) -> float:
    body = {"model": model, "temperature": 0, "max_tokens": 4, "messages": _messages(words)}
    cost: dict[str, Any] = http.post("/v1/chat/completions", json=body).json()["usage"]["veil"]
    return float(cost["seconds"]["first_token"])


def _messages(words: list[str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(words)}]


if __name__ == "__main__":
    main()
