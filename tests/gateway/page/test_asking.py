"""Asking at the chat page: answers that stream, stop, break off and go on, branches, and what the server saw."""

from __future__ import annotations

from typing import Any

import httpx

from veil.errors import ServerUnreachable
from veil.gateway.app import Settings
from veil.gateway.guard import Access
from waiting import until


def expected(running: Any, words: str, count: int) -> str:
    """What the API says to the same question."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": count}
    reply = httpx.post(f"{running.url}/v1/chat/completions", json=body).json()
    return str(reply["choices"][0]["message"]["content"])


def breaking(after: int) -> Any:
    """An observer of remote layers that loses the server after so many."""
    seen = iter(range(1 << 30))

    def observe(*_: Any) -> None:
        if next(seen) >= after:
            raise ServerUnreachable("no usable answer; is 'veil serve' running there?")

    return observe


def test_an_answer_is_streamed_and_says_what_the_server_saw(person: Any, running: Any) -> None:
    wanted = expected(running, "w23 w6 w7", 6)
    with running.held(after=30) as go_on:  # half of the answer
        person.ask("w23 w6 w7")
        person.until(
            "(wanted) => { const now = document.querySelector('.turn.writing .text')?.textContent.trim();"
            " return now && now !== wanted && wanted.startsWith(now) }",
            wanted,
        )
        go_on.set()
        assert person.answer() == wanted
    assert person.find(".turn.user .text").inner_text() == "w23 w6 w7"
    assert person.find("#title").inner_text() == "w23 w6 w7"
    assert "token" in person.find(".saw summary").inner_text()
    person.find(".saw summary").click()
    facts = person.find(".saw dl").inner_text()
    assert all(name in facts for name in ("sent", "received", "until the first word", "round trips", "encryption"))
    shown = bytes.fromhex(person.find(".saw-body code").inner_text().replace(" ", ""))
    assert len(shown) == 16
    painted = person.tab.evaluate(
        "() => { const c = document.querySelector('.saw-body canvas');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 == 3 && v).length }"
    )
    assert painted > 500, "the bytes are drawn"
    assert person.find("#announce").inner_text().startswith("Answer: w58")
    loaded = person.tab.evaluate("() => performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(loaded) > 20
    assert all(name.startswith(f"{running.url}/") for name in loaded), "nothing comes from elsewhere"


def test_a_long_answer_is_stopped_and_gone_on_with(person: Any, running: Any) -> None:
    person.find("#open-panel").click()
    person.find("#set-max_tokens").fill("100")
    before = running.gateway.generator.totals.rows
    with running.held_until_left(after=90):
        person.ask("w23 w6 w7")
        person.until("() => document.querySelector('.turn.writing .text')?.textContent.split(' ').length > 3")
        person.find("#stop").click()
        kept = person.answer()
        assert running.idle()
    assert running.gateway.generator.totals.rows - before < 100
    assert 2 < len(kept.split()) < 90
    assert person.find(".ending .said").inner_text() == "Stopped."
    person.find("#set-max_tokens").fill("4")
    person.button("Go on").click()
    person.until("(kept) => document.querySelector('.turn.assistant .text').textContent.trim().length > kept.length", kept)
    more = person.answer()
    assert more.startswith(kept) and len(more.split()) <= len(kept.split()) + 4
    assert person.find(".turn").count() == 2
    with running.held_until_left(after=90):
        person.find("#set-max_tokens").fill("100")
        person.ask("w9")
        person.until("() => document.querySelector('.turn.writing .text')?.textContent")
        person.find("#prompt").press("Escape")
        person.answer()
        assert running.idle()


def test_an_answer_that_breaks_off_stays_and_goes_on(writer: Any, bytes_running: Any, script: Any) -> None:
    script(bytes_running, "Hello, wor", "ld.")
    router = bytes_running.gateway.served.hybrid.sides.router
    router.observer = breaking(after=25)
    try:
        writer.ask("Greet.")
        writer.find(".ending[role=alert]").wait_for()
    finally:
        router.observer = None
    kept = writer.answer()
    assert kept and "Hello, wor".startswith(kept), "what was written is not lost"
    assert "veil serve" in writer.find(".ending .said").inner_text()
    writer.reload()
    assert writer.answer() == kept
    writer.button("Go on").click()
    writer.until("() => document.querySelector('.turn.assistant:not(.writing) .text')?.textContent.trim().endsWith('ld.')")
    assert writer.answer() == f"{kept}ld."
    assert writer.find(".ending").count() == 0


def test_a_message_that_was_not_sent_stays_in_the_box(person: Any, running: Any) -> None:
    router = running.gateway.served.hybrid.sides.router
    router.observer = breaking(after=0)
    try:
        person.find("#prompt").fill("w1 w2")
        person.find("#prompt").press("Enter")
        person.until("() => document.getElementById('problem-text').textContent.includes('veil serve')")
    finally:
        router.observer = None
    assert person.find("#prompt").input_value() == "w1 w2"
    person.complaints.clear()  # the browser's own words about the refused request
    assert person.find("#welcome").is_visible() and person.find(".turn").count() == 0
    person.reload()
    assert person.find("#prompt").input_value() == "w1 w2", "a draft outlives a reload"
    person.find("#prompt").press("Enter")
    assert person.answer()
    assert person.find("#prompt").input_value() == ""
    assert person.find("#problem").is_hidden()


def test_answers_are_tried_again_and_questions_edited_in_branches(person: Any) -> None:
    first = person.ask("w1 w2").answer()
    second = person.ask("w3").answer()
    assert "kept from before" in (person.find(".saw dl").last.text_content() or "")
    person.find(".turn.assistant").first.get_by_role("button", name="Try again").click()
    person.until("() => document.querySelector('.arrows .count')?.textContent === '2/2'")
    assert person.answer() == first
    assert person.find(".turn").count() == 2, "the new branch has no second question yet"
    person.button("Previous answer").click()
    person.count(".turn", 4)
    assert person.answer() == second
    person.find("#prompt").press("ArrowUp")
    person.find(".editing").fill("w4 w5")
    person.find(".editing").press("Enter")
    person.until("() => [...document.querySelectorAll('.turn.user .text')].at(-1).textContent === 'w4 w5'")
    person.answer()
    assert person.find(".turn.user .arrows .count").inner_text() == "2/2"
    person.reload()
    assert person.find(".turn.user .text").last.inner_text() == "w4 w5"
    person.find(".turn.user").last.get_by_role("button", name="Previous version").click()
    person.until("() => [...document.querySelectorAll('.turn.user .text')].at(-1).textContent === 'w3'")


def test_settings_of_a_chat_are_its_own_and_kept(person: Any) -> None:
    person.find("#open-panel").click()
    person.find("#set-max_tokens").fill("3")
    person.find("#set-system").fill("w40 w41")
    person.find("#save-preset").click()
    person.find("dialog[open] input").fill("Short")
    person.confirm("Save")
    person.ask("w23 w6 w7")
    assert len(person.answer().split()) <= 3
    assert "longest answer" in person.find(".ending .said").inner_text()
    person.reload()
    person.find("#open-panel").click()
    assert person.find("#set-system").input_value() == "w40 w41"
    person.find("#new-chat").click()
    assert person.find("#set-system").input_value() == ""
    person.find("#preset").select_option("Short")
    assert person.find("#set-max_tokens").input_value() == "3"


def test_a_call_is_shown_and_its_result_given(writer: Any, bytes_running: Any, script: Any) -> None:
    script(bytes_running, '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>', "Cold.")
    writer.find("#open-panel").click()
    writer.find("#set-tools").fill('[{"name": "weather", "parameters": {"type": "object"}}]')
    writer.ask("Weather?").answer()
    assert "weather" in writer.find(".call h3").inner_text()
    assert '"city": "Oslo"' in writer.find(".call pre").inner_text()
    writer.find(".result textarea").fill("-4 degrees")
    writer.button("Give the result").click()
    writer.until("() => [...document.querySelectorAll('.turn.assistant .text')].at(-1)?.textContent.trim() === 'Cold.'")
    assert "-4 degrees" in writer.find(".call").inner_text()


def test_a_call_that_is_not_complete_is_not_sent(writer: Any, bytes_running: Any, script: Any) -> None:
    """Neither while it is written, when the chat's tokens are counted, nor after it was stopped."""
    call = '<tool_call>{"name": "weather", "arguments": {"city": "' + "Oslo " * 100 + '"}}</tool_call>'
    script(bytes_running, call, "Fine.")
    writer.find("#open-panel").click()
    writer.find("#set-tools").fill('[{"name": "weather", "parameters": {"type": "object"}}]')
    with bytes_running.held_until_left(after=1000):
        writer.ask("Weather?")
        writer.until("() => document.querySelector('.call pre')?.textContent.includes('Oslo')")
        with writer.tab.expect_response("**/tokenize") as counted:
            writer.find("#prompt").fill("Never mind.")
        assert counted.value.status == 200
        assert writer.find(".turn.writing").count() == 1, "it was still being written"
        writer.find("#stop").click()
        writer.answer()
    assert "Oslo" in writer.find(".call pre").inner_text() and writer.find(".result").count() == 0
    writer.find("#prompt").press("Enter")
    writer.until("() => [...document.querySelectorAll('.turn.assistant .text')].at(-1)?.textContent.trim() === 'Fine.'")


def test_the_dot_shows_a_lost_server(person: Any, running: Any, monkeypatch: Any) -> None:
    from veil.gateway.served import ServedModel

    person.status("Ready")
    monkeypatch.setattr(ServedModel, "lost_s", property(lambda _: 1.0))
    person.status("Server not reached")
    assert person.find("#dot").get_attribute("data-state") == "down"
    assert person.find("#waiting-for-server").is_visible()
    monkeypatch.undo()
    person.status("Ready")
    person.tab.route("**/veil/status*", lambda route: route.abort())
    person.status("Gateway not reached")
    person.tab.unroute("**/veil/status*")
    person.status("Ready")
    person.complaints.clear()  # the browser's own words about the aborted requests


def test_writing_announces_the_prompt(person: Any, running: Any, monkeypatch: Any) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(running.gateway.served, "expect", lambda *sizes: told.append(sizes))
    running.gateway._expected.clear()
    person.tab.evaluate("() => { const now = Date.now(); window.later = 0; Date.now = () => now + window.later }")
    person.find("#prompt").press_sequentially("w1 w2 w3")
    until(lambda: told)
    assert told == [(told[0][0], 6)] and 1 <= told[0][0] <= 8, "not for every key"
    running.gateway._expected.clear()
    person.tab.evaluate("() => { window.later = 1000 }")
    person.find("#prompt").press_sequentially(" w4 w5 w6")
    until(lambda: len(told) == 2)


def test_a_key_is_asked_for(people: Any, served: Any, listen: Any) -> None:
    with listen(served, access=Access(api_key="open sesame")) as running:
        person = people(running.url).visit()
        person.status("API key needed")
        person.find("#open-settings").click()
        person.find("#api-key").fill("open sesame")
        person.confirm("Done")
        person.status("Ready")
        assert person.ask("w1").answer()
        person.tab.close()


def test_a_page_elsewhere_gets_nothing(people: Any, running: Any, served: Any, listen: Any) -> None:
    with listen(served) as other:  # another port is another origin
        person = people(other.url).visit()
        outcome = person.tab.evaluate(
            "(url) => Promise.all(['/v1/models', '/veil/status'].map((path) =>"
            " fetch(url + path).then((r) => 'read ' + r.status, () => 'refused')))",
            running.url,
        )
        assert outcome == ["refused", "refused"]
        person.tab.close()


def test_finished_words_go_up_while_one_types(people: Any, served: Any, listen: Any) -> None:
    with listen(served, settings=Settings(eager=True)) as running:
        person = people(running.url).visit()
        person.status("Ready")
        prefilled: list[Any] = []
        person.tab.on("request", lambda request: prefilled.append(request) if "prefill" in request.url else None)
        person.find("#prompt").press_sequentially("w31 w32 w33 w3")
        person.until("() => !('preparing' in document.body.dataset)")
        sent = [request.post_data_json["messages"][-1]["content"] for request in prefilled]
        assert sent[-1] == "w31 w32 w33", "not the word that is being written"
        person.find("#prompt").press_sequentially("4")
        person.find("#prompt").press("Enter")
        person.answer()
        assert "4 kept from before" in (person.find(".saw dl").text_content() or "")
        person.find("#open-settings").click()
        person.find("#eager").uncheck()
        person.confirm("Done")
        count = len(prefilled)
        person.ask("w1 w2 w3").answer()
        assert len(prefilled) == count
        person.tab.close()
