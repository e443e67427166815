"""A real Chromium drives the chat page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from veil.errors import ServerUnreachable
from veil.gateway.guard import Access


@pytest.fixture
def page(browser: Any, running: Any, page_of: Any) -> Any:
    made = page_of(browser, running.url)
    made.complaints()
    return made


def expected(running: Any, words: str, count: int) -> str:
    """What the API says to the same question."""
    import httpx

    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": count}
    reply = httpx.post(f"{running.url}/v1/chat/completions", json=body).json()
    return str(reply["choices"][0]["message"]["content"])


def test_an_answer_is_streamed_and_says_what_the_server_saw(page: Any, running: Any) -> None:
    wanted = expected(running, "w23 w6 w7", 6)
    seen = set()
    with running.slowed(0.004):
        page.ask("w23 w6 w7")
        page.until(lambda: page.all(".writing"))
        while page.all(".writing"):
            seen.add(page.text(".turn.assistant .text"))
    assert page.answer() == wanted
    assert len(seen) > 3 and all(wanted.startswith(part) for part in seen), "the words came one after another"
    assert page.text(".turn.user .text") == "w23 w6 w7"
    assert page.text("#title") == "w23 w6 w7"
    facts = page.text(".saw dl")
    assert all(name in facts for name in ("sent", "received", "a token", "rows", "security"))
    shown = bytes.fromhex(page.text(".saw code").replace(" ", ""))
    assert len(shown) == 16 and page.one(".saw canvas").is_displayed()
    painted = page.browser.execute_script(
        "const c = document.querySelector('.saw canvas');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 == 3 && v).length"
    )
    assert painted > 500, "the bytes are drawn"
    assert page.text("#announce").startswith("Answer: w58")
    assert page.complaints() == []


def test_nothing_is_loaded_from_elsewhere(page: Any) -> None:
    page.ask("w1")
    page.answer()
    loaded = page.browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(loaded) >= 6
    assert all(name.startswith(f"{page.url}/") for name in loaded)


def test_a_long_answer_is_stopped(page: Any, running: Any) -> None:
    page.settings(maxTokens=100)
    before = running.gateway.generator.totals.rows
    with running.slowed(0.01):
        page.ask("w23 w6 w7")
        page.until(lambda: len(page.text(".turn.assistant .text").split()) > 2)
        page.one("#stop").click()
        kept = page.answer()
        assert running.idle()
    assert running.gateway.generator.totals.rows - before < 40
    assert 2 < len(kept.split()) < 40
    assert page.text(".stopped") == "stopped"
    with running.slowed(0.01):
        page.ask("w9")
        page.until(lambda: page.all(".writing"))
        page.one("body").send_keys(Keys.ESCAPE)
        page.until(lambda: not page.all(".writing"))
        assert running.idle()


def test_chats_survive_a_reload_and_can_be_deleted(page: Any) -> None:
    page.ask("w1 w2")
    first = page.answer()
    page.one("#new-chat").click()
    assert page.one("#welcome").is_displayed()
    page.ask("w23 w6 w7")
    second = page.answer()
    page.reload()
    assert page.answer() == second and page.one(".saw canvas").is_displayed()
    titles = [item.text for item in page.all("#chat-list .open")]
    assert titles == ["w23 w6 w7", "w1 w2"]
    page.all("#chat-list .open")[1].click()
    assert page.answer() == first
    page.all("#chat-list .remove")[1].click()
    page.browser.switch_to.alert.accept()
    page.until(lambda: len(page.all("#chat-list .open")) == 1)
    page.reload()
    assert [item.text for item in page.all("#chat-list .open")] == ["w23 w6 w7"]
    assert page.complaints() == []


def test_a_conversation_goes_on_and_an_answer_can_be_tried_again(page: Any, running: Any) -> None:
    page.ask("w1 w2")
    page.answer()
    page.ask("w3")
    answer = page.answer()
    assert len(page.all(".turn")) == 4
    assert "reused" in page.all(".saw dl")[-1].get_attribute("textContent")
    next(button for button in page.all(".turn:last-child .actions button") if button.text == "Try again").click()
    assert page.answer() == answer
    assert len(page.all(".turn")) == 4


def test_writing_announces_the_prompt(page: Any, running: Any, monkeypatch: Any) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(running.gateway.served, "expect", lambda *sizes: told.append(sizes))
    running.gateway._expected.clear()
    page.one("#prompt").send_keys("w1 w2 w3")
    page.until(lambda: told)
    assert 1 <= told[0][0] <= 8 and told[0][1] == 6
    assert len(told) <= 2, "not for every key"


def test_settings_are_kept_and_used(page: Any, running: Any) -> None:
    page.one("#open-settings").click()
    field = page.one("#max-tokens")
    field.clear()
    field.send_keys("3")
    page.one("#system").send_keys("w40 w41")
    page.one("#settings [type=submit]").click()
    page.reload()
    page.ask("w23 w6 w7")
    assert len(page.answer().split()) <= 3
    assert "longest answer" in page.text(".stopped")
    stored = json.loads(page.browser.execute_script("return localStorage.getItem('veil.settings')"))
    assert (stored["maxTokens"], stored["system"]) == (3, "w40 w41")


def test_light_dark_and_a_phone(page: Any) -> None:
    def back() -> str:
        return str(page.browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    page.ask("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19")
    page.answer()
    light = back()
    page.one("#theme").click()
    dark = back()
    assert light != dark
    page.reload()
    assert back() == dark
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.reload()
        wide = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= 390, "nothing sticks out"
        assert not page.one("#new-chat").is_displayed()
        page.one("#menu").click()
        page.until(lambda: page.one("#new-chat").is_displayed())
        assert page.one("#menu").get_attribute("aria-expanded") == "true"
        page.one("body").send_keys(Keys.ESCAPE)
        page.until(lambda: not page.one("#new-chat").is_displayed())
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_has_a_name_and_is_reached_by_keyboard(page: Any) -> None:
    page.ask("w1")
    page.answer()
    tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        node for node in tree if node.get("role", {}).get("value") in ("button", "textbox", "combobox", "link", "slider")
    ]
    assert len(controls) >= 8
    assert all(node["name"]["value"] for node in controls), "every control has a name"
    page.browser.execute_script("document.activeElement.blur()")
    reached = set()
    for _ in range(20):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.browser.execute_script("return document.activeElement.id || document.activeElement.textContent"))
    assert {"new-chat", "open-settings", "theme", "prompt", "Copy", "Try again"} <= reached


def test_what_a_model_writes_is_text_and_never_markup(page: Any) -> None:
    source = "# Title\n<img src=x onerror=alert(1)> **bold** *em* `a<b`\n\n- one\n- [link](javascript:alert(1))\n\n"
    source += "```js\n<script>1\n```\n3. x"
    html = page.browser.execute_async_script(
        "const [source, done] = arguments; import('/page/markdown.js').then(({ render }) => {"
        "const target = document.createElement('div'); render(source, target); done(target.innerHTML); })",
        source,
    )
    assert html == (
        "<h3>Title</h3><p>&lt;img src=x onerror=alert(1)&gt; <strong>bold</strong> <em>em</em> <code>a&lt;b</code></p>"
        "<ul><li>one</li><li>[link](javascript:alert(1))</li></ul>"
        '<pre><code>&lt;script&gt;1</code></pre><ol start="3"><li>x</li></ol>'
    )


def test_a_failure_is_told_and_can_be_tried_again(page: Any, running: Any) -> None:
    router = running.gateway.served.hybrid._router

    def down(*_: Any) -> None:
        raise ServerUnreachable("no usable answer; is 'veil serve' running there?")

    router.observer = down
    try:
        page.ask("w1")
        page.until(lambda: page.all("[role=alert]"))
        assert "veil serve" in page.text("[role=alert]")
    finally:
        router.observer = None
    next(button for button in page.all(".actions button") if button.text == "Try again").click()
    page.until(lambda: page.all(".saw") and not page.all("[role=alert]"))


def test_a_key_is_asked_for(browser: Any, served: Any, listen: Any, page_of: Any) -> None:
    with listen(served, access=Access(api_key="open sesame")) as running:
        page = page_of(browser, running.url)
        assert "API key" in page.text("#status")
        page.one("#open-settings").click()
        page.one("#api-key").send_keys("open sesame")
        page.one("#settings [type=submit]").click()
        page.until(lambda: "ready" in page.text("#status"))
        page.ask("w1")
        assert page.answer()
        browser.get("about:blank")


def test_a_page_elsewhere_gets_nothing(browser: Any, running: Any, served: Any, listen: Any) -> None:
    with listen(served) as other:  # another port is another origin
        browser.get(other.url)
        outcome = browser.execute_async_script(
            "const [url, done] = arguments;"
            "Promise.all(['/v1/models', '/veil/status'].map((path) =>"
            " fetch(url + path).then((r) => 'read ' + r.status, () => 'refused'))).then(done)",
            running.url,
        )
        assert outcome == ["refused", "refused"]
        browser.get("about:blank")
