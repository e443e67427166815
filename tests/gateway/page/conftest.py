"""A person at the chat page: Debian's Chromium, driven by Playwright, which waits for what is on the screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_FLAGS = (
    "--no-sandbox",  # it runs as root in CI, and opens pages of this machine only
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
)
_WITHIN_MS = 30_000
"""Longest wait for a state; machines are busy now and then."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. Without one the test is skipped, and fails where the variable ``CI`` is set.

    It lives for a module: while Playwright runs, nothing else in this thread can have an event loop.
    """
    program = shutil.which("chromium")
    if program is None:
        reason = "chromium is not installed; on Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        yield made
        made.close()


class Person:
    """What a person sees and does in one tab. ``complaints`` are errors that the page had."""

    def __init__(self, tab: Any, url: str) -> None:
        self.tab, self.url = tab, url
        self.complaints: list[str] = []
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", self._hear)

    def _hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(f"{said.text} {said.location.get('url', '')}")

    def visit(self, **settings: Any) -> Person:
        """Open the page, with settings for new chats."""
        settings = {"max_tokens": 6, "temperature": 0} | settings
        self.tab.add_init_script(f"localStorage['veil.presets'] ??= JSON.stringify({{ Default: {settings!r} }})")
        self.tab.goto(self.url)
        return self.arrived()

    def reload(self) -> Person:
        """Load the page anew."""
        self.tab.reload()
        return self.arrived()

    def arrived(self) -> Person:
        self.tab.wait_for_selector("body[data-ready]")
        return self

    def find(self, selector: str) -> Any:
        """What a selector names: `playwright.sync_api.Locator`, which waits for what is done with it."""
        return self.tab.locator(selector)

    def button(self, name: str) -> Any:
        """The last button of a name on the screen."""
        return self.tab.get_by_role("button", name=name, exact=True).last

    def ask(self, words: str) -> Person:
        """Write a message and send it."""
        before = self.find(".turn.assistant").count()
        self.find("#prompt").fill(words)
        self.find("#prompt").press("Enter")
        self.find(".turn.assistant").nth(before).wait_for(state="attached")
        return self

    def answer(self) -> str:
        """The last answer, when it is complete."""
        self.tab.wait_for_selector(".turn.assistant:last-child:not(.writing) .tools", state="attached")
        return str(self.find(".turn.assistant .text").last.inner_text())

    def until(self, expression: str, argument: Any = None) -> None:
        """Wait until an expression of JavaScript holds."""
        self.tab.wait_for_function(expression, arg=argument)

    def count(self, selector: str, wanted: int) -> None:
        """Wait until so many are there."""
        self.until("([selector, wanted]) => document.querySelectorAll(selector).length === wanted", [selector, wanted])

    def status(self, words: str) -> None:
        """Wait until the page says how things are."""
        self.until("(words) => document.getElementById('status-text').textContent.includes(words)", words)

    def confirm(self, name: str) -> None:
        """Press a button of the dialog that is open."""
        self.tab.locator("dialog[open]").get_by_role("button", name=name, exact=True).last.click()


@pytest.fixture
def people(browser: Any) -> Iterator[Callable[..., Person]]:
    """Makes a person with a browser profile of their own, or in the profile of another."""
    contexts: list[Any] = []

    def make(url: str, beside: Person | None = None, **options: Any) -> Person:
        if beside is not None:
            context = beside.tab.context
        else:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"} | options)
            context.set_default_timeout(_WITHIN_MS)
            contexts.append(context)
        return Person(context.new_page(), url)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def person(people: Callable[..., Person], running: Any) -> Iterator[Person]:
    """A person at the page of the model ``tiny``; the page has had no errors when they leave."""
    made = people(running.url).visit()
    yield made
    assert made.complaints == []


@pytest.fixture
def writer(people: Callable[..., Person], bytes_running: Any) -> Iterator[Person]:
    """A person at the page of the model ``bytes``, which writes what a script says."""
    made = people(bytes_running.url).visit(max_tokens=900)
    yield made
    assert made.complaints == []
