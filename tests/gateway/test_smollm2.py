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
PHONE = {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}


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


def picture(browser: Any, name: str) -> None:
    folder = os.environ.get("VEIL_SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_paris_a_long_answer_stopped_and_a_reload(browser: Any, smollm2: ServedModel, listen: Any, page_of: Any) -> None:
    with listen(smollm2) as running:
        page = page_of(browser, running.url)
        page.complaints()  # those of tests before this one
        page.settings(maxTokens=200, temperature=0)
        browser.set_window_size(1280, 860)
        page.ask(QUESTION)
        page.until(lambda: page.all(".writing"), 30)
        seen = set()
        while page.all(".writing"):
            seen.add(page.text(".turn.assistant .text"))
        first = page.answer()
        assert "Paris" in first
        assert len(seen) > 3, "it was streamed"
        page.ask("Explain in a few paragraphs why people encrypt their letters.")
        page.until(lambda: len(page.all(".turn.assistant .text")[-1].text.split()) > 15, 60)
        page.one("#stop").click()
        page.answer()
        assert running.idle()
        assert page.all(".stopped")[-1].text == "stopped"
        assert "155.6 bits" in page.text(".saw dl")
        page.reload()
        page.until(lambda: "ready" in page.text("#status"), 30)
        assert page.all(".turn.assistant .text")[0].text == first
        assert len(page.all(".turn")) == 4
        assert page.complaints() == []
        browser.execute_script("document.getElementById('scroll').scrollTop = 0")
        picture(browser, "chat-light")
        page.one("#theme").click()
        picture(browser, "chat-dark")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        try:
            page.one("#theme").click()
            page.reload()
            page.until(lambda: "rows ready" in page.text("#status"), 30)
            browser.execute_script("document.getElementById('scroll').scrollTop = 0")
            picture(browser, "chat-phone")
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get("about:blank")
