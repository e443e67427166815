"""Commands of `veil chat`: files in and out, instructions, another model, and Ctrl-C that tears nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from veil.commands import chat_commands
from veil.commands.choice import ModelChoice
from veil.commands.conversation import ChatOptions, Conversation
from veil.commands.interrupts import interrupts_set
from veil.flag import Flag
from veil.gateway.sampling import Sampler


@pytest.fixture
def conversation(byte_served: Any) -> Conversation:
    request = ChatOptions(choice=ModelChoice(), max_tokens=4, temperature=0, system="be kind")
    return Conversation(byte_served, request)


def obey(conversation: Conversation, line: str) -> str:
    return chat_commands.obey(conversation, line, lambda _: None) or ""


def test_a_conversation_is_saved_and_loaded(conversation: Conversation, byte_served: Any, tmp_path: Path) -> None:
    conversation.ask("hi", lambda _: None)
    path = tmp_path / "talk.json"
    assert str(path) in obey(conversation, f"/save {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    conversation.ask("more", lambda _: None)
    obey(conversation, f"/save {path}")
    turns = list(conversation.turns)
    other = Conversation(byte_served, ChatOptions(choice=ModelChoice(), max_tokens=4))
    with pytest.raises(ValueError, match="exists already"):
        obey(other, f"/save {path}")
    assert "2 messages" in obey(other, f"/load {path}") and other.turns == turns and other.system == "be kind"
    obey(other, f"/save {path}")
    assert json.loads(path.read_text())["model"] == "bytes"
    assert "needs a file" in obey(other, "/load")


@pytest.mark.parametrize("text", ["", "[]", '{"messages": 5}', '{"messages": [{"role": "x", "content": "y"}]}', "\xff"])
def test_files_that_are_no_conversation(conversation: Conversation, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"no conversation|no UTF-8"):
        obey(conversation, f"/load {path}")
    with pytest.raises(ValueError, match="check the path"):
        obey(conversation, f"/load {tmp_path / 'nothing'}")
    assert conversation.turns == [("system", "be kind")]


def test_a_file_goes_with_the_next_message(conversation: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("one\n```\ntwo\n```\n")
    assert "next message" in obey(conversation, f"/attach {path}")
    conversation.ask("what is it?", lambda _: None)
    assert conversation.turns[1][1] == "notes.md:\n````\none\n```\ntwo\n```\n````\n\nwhat is it?"
    conversation.ask("and now?", lambda _: None)
    assert conversation.turns[3][1] == "and now?", "once is enough"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        obey(conversation, f"/attach {path}")
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match="more than"):
        obey(conversation, f"/attach {path}")


def test_instructions_change(conversation: Conversation) -> None:
    conversation.ask("hi", lambda _: None)
    assert "be kind" in obey(conversation, "/system")
    obey(conversation, "/system be brief")
    assert conversation.turns[0] == ("system", "be brief") and len(conversation.turns) == 3
    assert "no instructions" in obey(conversation, "/system -") and conversation.turns[0][0] == "user"
    obey(conversation, "/reset")
    assert conversation.turns == []


def test_another_model_goes_on(conversation: Conversation, served: Any) -> None:
    assert "bytes" in obey(conversation, "/model")
    with pytest.raises(ValueError, match="one model"):
        obey(conversation, "/model tiny")
    conversation.open_model = lambda name: {"tiny": served}[name]
    conversation.turns = [("user", "w1"), ("assistant", "w2")]
    assert "tiny" in obey(conversation, "/model tiny")
    conversation.ask("w3", lambda _: None)
    assert conversation.served is served and len(conversation.turns) == 4


def test_ctrl_c_sets_an_event_and_the_next_one_raises(conversation: Conversation, monkeypatch: Any) -> None:
    call, drawn = Sampler.__call__, [0]

    def draw(self: Any, input_ids: Any, scores: Any) -> Any:
        drawn[0] += 1
        if drawn[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, input_ids, scores)

    monkeypatch.setattr(Sampler, "__call__", draw)
    before = signal.getsignal(signal.SIGINT)
    with interrupts_set(conversation.interrupted):
        conversation.ask("hi", lambda _: None)
        assert conversation.stopped and drawn[0] == 2, "the answer ended after that token"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert signal.getsignal(signal.SIGINT) is before
    conversation.ask("hi", lambda _: None)
    assert not conversation.stopped
    elsewhere: list[Any] = []

    def inside() -> None:
        with interrupts_set(Flag()):
            elsewhere.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert elsewhere == [before]
