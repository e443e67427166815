"""The page for everybody: phones, light and dark, keyboards, and those who hear it."""

from __future__ import annotations

from typing import Any

import pytest

PHONE = {"viewport": {"width": 390, "height": 800}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def back(person: Any) -> str:
    return str(person.tab.evaluate("() => getComputedStyle(document.body).backgroundColor"))


def grave(person: Any) -> list[str]:
    """What axe-core finds that is serious."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(person.tab).response["violations"]
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_light_and_dark(person: Any) -> None:
    light = back(person)
    person.tab.emulate_media(color_scheme="dark")
    dark = back(person)
    assert light != dark
    person.find("#open-settings").click()
    person.find("#appearance").select_option("light")
    assert back(person) == light
    person.reload()
    assert back(person) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(people: Any, bytes_running: Any, script: Any, scheme: str) -> None:
    person = people(bytes_running.url, color_scheme=scheme, reduced_motion="reduce").visit(max_tokens=900)
    assert grave(person) == []
    script(
        bytes_running,
        "# T\n\n| a | b |\n| --- | --- |\n| 1 | $x$ |\n\n```js\nlet a = 'b'; // c\n```\n\n[x](https://example.org)",
    )
    person.ask("Show.").answer()
    person.find(".katex").first.wait_for()
    person.find(".saw summary").click()
    person.find("#open-panel").click()
    assert grave(person) == []
    person.find("#open-settings").click()
    assert grave(person) == []
    person.confirm("Done")
    person.tab.keyboard.press("Control+/")
    person.find("#shortcuts[open]").wait_for()
    assert grave(person) == []


def test_a_phone(people: Any, running: Any) -> None:
    person = people(running.url, **PHONE).visit()
    person.ask("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19").answer()
    assert person.tab.evaluate("() => document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    assert person.find("#new-chat").is_hidden()
    person.find("#menu").tap()
    person.find("#new-chat").wait_for()
    assert person.find("#menu").get_attribute("aria-expanded") == "true"
    assert grave(person) == []
    person.tab.keyboard.press("Escape")
    person.find("#new-chat").wait_for(state="hidden")
    person.find("#open-panel").tap()
    person.find("#set-system").wait_for()
    assert person.tab.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_everything_is_reached_by_keyboard(person: Any) -> None:
    person.ask("w1").answer()
    person.tab.evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        person.tab.keyboard.press("Tab")
        reached.add(
            person.tab.evaluate(
                "() => document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.textContent"
            )
        )
    wanted = {"new-chat", "search", "open-settings", "open-panel", "prompt", "attach", "Copy this answer", "Try again"}
    assert wanted <= reached


def test_shortcuts(person: Any) -> None:
    person.ask("w1").answer()
    keyboard = person.tab.keyboard
    keyboard.press("Alt+n")
    person.find("#welcome").wait_for()
    person.ask("w2").answer()
    keyboard.press("Alt+ArrowDown")
    person.until("() => document.getElementById('title').textContent === 'w1'")
    keyboard.press("Alt+ArrowUp")
    person.until("() => document.getElementById('title').textContent === 'w2'")
    keyboard.press("Alt+r")
    person.until("() => document.querySelector('.arrows .count')?.textContent === '2/2'")
    person.answer()
    keyboard.press("Alt+s")
    person.find("#panel").wait_for()
    keyboard.press("Alt+s")
    person.find("#panel").wait_for(state="hidden")
    person.tab.evaluate("() => document.activeElement.blur()")
    keyboard.press("/")
    person.until("() => document.activeElement.id === 'prompt'")
    assert person.find("#prompt").input_value() == ""
