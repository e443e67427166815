"""The chats of the page: kept in the browser, in two tabs at once, renamed, searched, exported and imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from waiting import until

WORDS = "[...document.querySelectorAll('.turn .text')].map((node) => node.innerText)"


def titles(person: Any) -> list[str]:
    return [text.strip() for text in person.find("#chat-list .open").all_inner_texts()]


def test_chats_survive_a_reload_and_can_be_deleted(person: Any) -> None:
    first = person.ask("w1 w2").answer()
    person.find("#new-chat").click()
    assert person.find("#welcome").is_visible()
    second = person.ask("w23 w6 w7").answer()
    person.reload()
    assert person.answer() == second and person.find(".saw summary canvas").is_visible()
    assert titles(person) == ["w23 w6 w7", "w1 w2"]
    assert person.find("#chat-list h2").inner_text() == "Today"
    person.find("#chat-list .open").last.click()
    person.until("() => document.getElementById('title').textContent === 'w1 w2'")
    assert person.answer() == first
    person.find("#chat-list li").last.get_by_role("button", name="Delete “w1 w2”").click()
    person.confirm("Delete")
    person.count("#chat-list .open", 1)
    person.reload()
    assert titles(person) == ["w23 w6 w7"]


def test_chats_are_renamed_and_searched(person: Any) -> None:
    person.ask("zebra apple").answer()
    person.find("#new-chat").click()
    person.ask("w30").answer()
    person.find("#chat-list li.here").get_by_role("button", name="Rename “w30”").click()
    person.find("dialog[open] input").fill("Travel plans")
    person.confirm("Rename")
    person.until("() => document.getElementById('title').textContent === 'Travel plans'")
    person.tab.keyboard.press("Control+k")
    person.tab.keyboard.type("APPLE zeb")
    person.count("#chat-list .open", 1)
    assert titles(person) == ["zebra apple"], "messages are searched, in any order of words"
    person.find("#search").fill("travel")
    person.until("() => document.querySelector('#chat-list .open').textContent === 'Travel plans'")
    person.find("#search").fill("nowhere")
    person.find("#chat-list .none").wait_for()


def test_two_tabs_lose_nothing(people: Any, person: Any, running: Any) -> None:
    other = people(running.url, beside=person).visit()
    person.ask("w1").answer()
    other.count("#chat-list .open", 1)
    other.ask("w2").answer()
    person.count("#chat-list .open", 2)
    assert titles(person) == titles(other) == ["w2", "w1"]
    person.find("#chat-list .open").first.click()
    person.until("() => document.getElementById('title').textContent === 'w2'")
    with running.held(after=10) as go_on:  # both write in the same chat
        other.ask("w3")
        person.count(".turn", 4)
        go_on.set()
        other.answer()
    person.until("() => document.querySelectorAll('.turn.assistant .tools').length === 2")
    person.ask("w4").answer()
    said = person.tab.evaluate(f"() => {WORDS}")
    assert len(said) == 6
    other.until(f"(said) => JSON.stringify({WORDS}) === JSON.stringify(said)", said)
    person.find("#chat-list li.here").get_by_role("button", name="Delete “w2”").click()
    person.confirm("Delete")
    other.count("#chat-list .open", 1)
    other.reload()
    assert titles(other) == ["w1"]
    assert other.complaints == []


def test_an_answer_goes_on_while_another_chat_is_read(person: Any, running: Any) -> None:
    person.ask("w1 w2").answer()
    with running.held(after=20) as go_on:
        person.ask("w5")
        person.find("#new-chat").click()
        person.find("#chat-list .pulse").wait_for()
        person.find("#chat-list .open").first.click()
        person.find(".turn.writing").wait_for(state="attached")
        go_on.set()
        assert person.answer()
    assert person.find(".turn").count() == 4


KEPT = """async () => {
  const { allChats, messagesOf } = await import("/page/database.js");
  const [chat] = await allChats();
  return (await messagesOf(chat.id)).some((one) => one.role === "assistant" && one.content);
}"""


def test_an_answer_whose_tab_was_closed_can_be_gone_on_with(people: Any, person: Any, running: Any) -> None:
    person.find("#open-panel").click()
    person.find("#set-max_tokens").fill("100")
    with running.held_until_left(after=90):
        person.ask("w23 w6 w7")
        person.until("() => document.querySelector('.turn.writing .text')?.textContent.split(' ').length > 3")
        until(lambda: person.tab.evaluate(KEPT), what="a kept part of the answer")
        person.reload()
        assert running.idle()
    person.button("Go on").wait_for()
    assert "page was closed" in person.find(".ending .said").inner_text()


def test_the_first_words_of_an_answer_are_kept_at_once(person: Any, running: Any) -> None:
    """Not half a second later, when the tab may be closed. Here what is kept now and then never is."""
    person.tab.evaluate("() => { window.setInterval = () => 0; }")
    person.find("#open-panel").click()
    person.find("#set-max_tokens").fill("100")
    with running.held_until_left(after=90):
        person.ask("w23 w6 w7")
        person.until("() => document.querySelector('.turn.writing .text')?.textContent.split(' ').length > 3")
        until(lambda: person.tab.evaluate(KEPT), what="a kept part of the answer")
        person.reload()
        assert running.idle()


def test_a_chat_shows_no_tokens_of_another(person: Any) -> None:
    """Its own are counted by the gateway, which here does not answer."""
    person.ask("w1 w2").answer()
    person.find("#tokens").wait_for()
    person.find("#new-chat").click()
    person.ask("w3").answer()
    person.find("#tokens").wait_for()
    person.tab.route("**/tokenize", lambda route: None)
    person.find("#chat-list .open").last.click()
    person.find("#tokens").wait_for(state="hidden")
    person.count(".turn", 2)
    assert "w1 w2" in person.find(".turn .text").first.inner_text()


def test_export_and_import(person: Any, tmp_path: Path) -> None:
    answer = person.ask("w1 w2").answer()
    person.ask("w3").answer()
    with person.tab.expect_download() as markdown:
        person.find("#chat-menu summary").click()
        person.find("#export-markdown").click()
    markdown.value.save_as(tmp_path / "chat.md")
    assert markdown.value.suggested_filename == "w1 w2.md"
    text = (tmp_path / "chat.md").read_text()
    assert text.startswith("# w1 w2\n\n## You\n\nw1 w2\n\n## tiny\n\n") and answer in text
    with person.tab.expect_download() as whole:
        person.find("#open-settings").click()
        person.find("#export-all").click()
    whole.value.save_as(tmp_path / "all.json")
    assert len(json.loads((tmp_path / "all.json").read_text())["chats"][0]["messages"]) == 4
    person.find("#forget").click()
    person.confirm("Delete all")
    person.count("#chat-list .open", 0)
    for _ in range(2):  # a second time changes nothing
        person.find("#import-file").set_input_files(tmp_path / "all.json")
        person.count(".turn", 4)
    assert titles(person) == ["w1 w2"]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "*Ho*"},
    ]
    (tmp_path / "saved.json").write_text(json.dumps({"model": "m", "messages": turns}))  # as `veil chat` saves it
    person.find("#import-file").set_input_files(tmp_path / "saved.json")
    person.until("() => document.getElementById('title').textContent === 'saved'")
    assert person.find(".turn em").inner_text() == "Ho"
    person.find("#open-panel").click()
    assert person.find("#set-system").input_value() == "Be brief."
    (tmp_path / "other.json").write_text("[1]")
    person.find("#import-file").set_input_files(tmp_path / "other.json")
    person.until("() => document.getElementById('problem-text').textContent === 'other.json has no chats in it.'")


def test_chats_of_the_older_page_are_taken_over(person: Any) -> None:
    turns = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "older", "stopped": "stopped"}]
    chat = {"id": "1", "title": "Old chat", "changed": 1_700_000_000_000, "turns": turns}
    person.tab.evaluate("(chat) => localStorage.setItem('veil.chats', JSON.stringify([chat]))", chat)
    person.reload()
    assert titles(person) == ["Old chat"]
    assert person.find("#chat-list h2").inner_text() == "November 2023"
    person.find("#chat-list .open").click()
    person.until("() => document.querySelector('.turn.assistant .text')?.textContent.trim() === 'older'")
    assert person.tab.evaluate("() => localStorage.getItem('veil.chats')") is None


def test_the_page_works_without_a_secure_context(person: Any) -> None:
    """Over plain HTTP on another name there is neither `crypto.randomUUID` nor a clipboard."""
    person.tab.add_init_script(
        "delete Crypto.prototype.randomUUID; Object.defineProperty(Navigator.prototype, 'clipboard', { value: undefined })"
    )
    person.reload()
    assert person.tab.evaluate("() => [crypto.randomUUID, navigator.clipboard]") == [None, None]
    person.ask("w1").answer()
    person.button("Copy this answer").click()
    person.until("() => document.getElementById('announce').textContent === 'Copied'")
