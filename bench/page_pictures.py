"""The pictures of the chat page in docs/images, made anew: SmolLM2's own answers at a gateway that listens.

    veil gateway --model smollm2 &
    python -m bench.page_pictures --url http://127.0.0.1:8472 [--out docs/images]

A conversation with a table and formulas is imported (SmolLM2 writes none worth showing), and SmolLM2 goes on with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ANSWER = r"""## Three ways to hide a message

| method | key, bits | time, ms | secure against |
| :--- | ---: | ---: | :---: |
| one-time pad | $n$ | 0.1 | anybody |
| AES-256 | 256 | 0.4 | known attacks |
| Learning with errors | 12,288 | 18.7 | quantum computers |

The last rests on $\mathbf{b} = \mathbf{A}\mathbf{s} + \mathbf{e} \bmod q$, and the noise has to stay small:

$$\Pr\left[\,|e| > \tfrac{q}{4}\,\right] \le 2\exp\left(-\frac{q^2}{32\sigma^2}\right)$$
"""
TALK = {
    "title": "Three ways to hide a message",
    "messages": [
        {"role": "user", "content": "Compare three ways to hide a message, in a table with formulas."},
        {"role": "assistant", "content": ANSWER},
    ],
}
CODE = "Write a Python function that computes the Fibonacci numbers, and explain it."
SETTINGS = {"max_tokens": 160, "temperature": 0}
WITHIN_MS = 90_000
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        light = opened(browser, args.url, "light", viewport={"width": 1280, "height": 800})
        ask(light, "Name the capital of France.")
        ask_in_new_chat(light, CODE)
        imported(light)
        ask(light, "Which method comes first in the table?")
        light.screenshot(path=args.out / "chat-light.png")
        light.emulate_media(color_scheme="dark")
        light.locator("#chat-list .open", has_text="Write a Python function").click()
        light.locator(".hljs-keyword").first.wait_for()
        light.locator(".saw summary").last.click()
        light.evaluate("() => document.activeElement.blur()")
        to_end(light)
        light.wait_for_timeout(2000)  # the counter of tokens is asked for when nothing was typed for a while
        light.screenshot(path=args.out / "chat-dark.png")
        phone = opened(browser, args.url, "dark", **PHONE)
        imported(phone)
        phone.evaluate("() => (document.getElementById('scroll').scrollTop = 0)")
        phone.screenshot(path=args.out / "chat-phone.png")
        browser.close()


def opened(browser: Browser, url: str, scheme: str, **options: object) -> Page:
    """The page in a browser profile of its own."""
    page: Page = browser.new_context(locale="en-GB", color_scheme=scheme, **options).new_page()  # type: ignore[arg-type]
    page.set_default_timeout(WITHIN_MS)
    page.add_init_script(f"localStorage['veil.presets'] ??= JSON.stringify({{ Default: {json.dumps(SETTINGS)} }})")
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


def ask(page: Page, words: str) -> None:
    """Send a message, and wait for the whole answer."""
    answers = page.locator(".turn.assistant:not(.writing) .tools").count()
    page.locator("#prompt").fill(words)
    page.locator("#send").click()
    page.locator(".turn.assistant:not(.writing) .tools").nth(answers).wait_for(state="attached")
    to_end(page)


def ask_in_new_chat(page: Page, words: str) -> None:
    """`ask` in a chat of its own."""
    page.locator("#new-chat").click()
    page.locator(".turn").first.wait_for(state="detached")
    ask(page, words)


def imported(page: Page) -> None:
    """The imported conversation, open."""
    page.locator("#import-file").set_input_files(
        {"name": "talk.json", "mimeType": "application/json", "buffer": json.dumps(TALK).encode()}
    )
    page.locator(".katex-display").wait_for()
    page.evaluate("() => document.fonts.ready")
    if page.locator("dialog[open]").count():
        page.keyboard.press("Escape")


def to_end(page: Page) -> None:
    """Show the end of the conversation."""
    page.evaluate("() => (document.getElementById('scroll').scrollTop = 1e6)")


if __name__ == "__main__":
    main()
