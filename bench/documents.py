"""A document asked about five times, the gateway begun anew each time: rows that go up, seconds until the first token."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastapi.testclient import TestClient

from veil.commands.choice import ModelChoice
from veil.commands.model_choice import opened
from veil.gateway.app import build_app
from veil.gateway.kept import KeptStates

QUESTIONS = ("Which room first?", "And item 3?", "And item 9?", "Who repaired it?", "How many items?")


def main() -> None:
    """Print a line for each question, and what is on disk at the end."""
    document = " ".join(f"Item {i}: the lamp in room {i * 7 % 50} was repaired on day {i}." for i in range(36))
    with tempfile.TemporaryDirectory() as name, opened(ModelChoice()) as served:
        folder = Path(name)
        for question in QUESTIONS:
            served.kept = KeptStates(folder, bytes(32), "model", most_bytes=1 << 30, days=1)
            http = TestClient(build_app(served), base_url="http://127.0.0.1")
            messages = [{"role": "user", "content": f"{document}\n{question}"}]
            body = {"model": served.name, "temperature": 0, "max_tokens": 4, "messages": messages}
            usage = http.post("/v1/chat/completions", json=body).json()["usage"]
            served.kept.close()
            cost = usage["veil"]
            print(
                f"{usage['prompt_tokens']} tokens: {cost['rows']} rows, first token {cost['seconds']['first_token']:.1f} s"
            )
        sizes = [file.stat().st_size for file in folder.glob("*.kv")]
        print(f"{len(sizes)} states, {sum(sizes):,} bytes")


if __name__ == "__main__":
    main()
