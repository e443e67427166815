"""The built-in model through the chat page, as a person would use it. ``VEIL_SCREENSHOTS`` names a folder for pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veil.client.session import OfflineRows
from veil.gateway.served import ServedModel

QUESTION = "Name the capital of France."


@pytest.fixture(scope="module")
def smollm2() -> Iterator[ServedModel]:
    from veil.commands.models import compiled
    from veil.sources.models import load_model

    source = load_model("smollm2")
    hybrid = compiled(source, bits=8, modules="linear")
    hybrid.offline_rows = OfflineRows()
    hybrid.set_fhe_mode("execute")
    yield ServedModel("smollm2", hybrid, source.tokenizer)
    hybrid.close()


def picture(person: Any, name: str) -> None:
    folder = os.environ.get("VEIL_SCREENSHOTS")
    if folder:
        person.tab.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_paris_a_long_answer_stopped_and_a_reload(people: Any, smollm2: ServedModel, listen: Any) -> None:
    with listen(smollm2) as running:
        person = people(running.url).visit(max_tokens=200)
        person.tab.set_default_timeout(150_000)  # a whole model's first rows, on machines that others use too
        person.ask(QUESTION)
        first = person.answer()
        assert "Paris" in first
        person.ask("Explain in a few paragraphs why people encrypt their letters.")
        person.until("() => document.querySelector('.turn.writing .text')?.textContent.split(' ').length > 15")
        person.find("#stop").click()
        person.answer()
        assert running.idle()
        assert person.find(".ending .said").inner_text() == "Stopped."
        assert "155.6 bits" in (person.find(".saw dl").first.text_content() or "")
        person.reload()
        person.status("Ready")
        assert person.find(".turn.assistant .text").first.inner_text() == first
        assert person.find(".turn").count() == 4
        person.find(".saw summary").first.click()
        person.tab.evaluate("() => (document.getElementById('scroll').scrollTop = 0)")
        picture(person, "chat-saw")
        assert person.complaints == []
        person.tab.close()
