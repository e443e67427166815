"""`veil chat`: a conversation with commands, on a pseudo-terminal and from a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from veil.cli import app
from veil.commands.choice import ModelChoice
from veil.commands.conversation import ChatOptions, Conversation, stats_of
from veil.errors import ServerUnreachable
from veil.gateway.served import ServedModel

SOURCE = Path(__file__).parents[1] / "src"
COMMAND = [sys.executable, "-c", "from veil.cli import main; main()", "chat"]


@pytest.fixture
def conversation(new_model: Callable[[str], Any], tiny_tokenizer: Any) -> Iterator[Conversation]:
    import torch

    from veil.hybrid.model import HybridFHEModel
    from veil.params import Params
    from veil.runtime.modules import select_modules

    model = new_model("llama")
    hybrid = HybridFHEModel(model, select_modules(model, "linear"))
    hybrid.compile_model(torch.arange(1, 9).unsqueeze(0), params=Params.insecure_tiny(signal_db=60.0), device="cpu")
    hybrid.set_fhe_mode("execute")
    request = ChatOptions(choice=ModelChoice(), max_tokens=5, temperature=0)
    yield Conversation(ServedModel("tiny", hybrid, tiny_tokenizer), request)
    hybrid.close()


def test_a_conversation_remembers_and_can_be_reset(conversation: Conversation) -> None:
    shown: list[str] = []
    first = conversation.ask("w23 w6 w7", shown.append)
    assert shown[-1] == first and len(shown) >= 4
    conversation.ask("w9", shown.append)
    assert [role for role, _ in conversation.turns] == ["user", "assistant"] * 2
    stats = stats_of(conversation)
    assert stats["cached_tokens"] >= 5 and stats["rows"] < stats["prompt_tokens"] + stats["new_tokens"]
    assert stats["all_rows"] > stats["rows"] and stats["bytes_up"] > 0
    assert conversation.retry(shown.append) == conversation.turns[-1][1]
    assert len(conversation.turns) == 4
    conversation.reset()
    assert conversation.turns == [] and conversation.ask("w23 w6 w7", shown.append) == first
    assert stats_of(conversation)["cached_tokens"] == 0, "what was said before is forgotten"


def test_a_failure_leaves_the_conversation_as_it_was(conversation: Conversation) -> None:
    conversation.ask("w1", lambda text: None)
    before = list(conversation.turns)

    def down(*_: Any) -> None:
        raise ServerUnreachable("gone")

    router: Any = conversation.served.hybrid.sides.router
    router.observer = down
    calls: list[Callable[[], object]] = [lambda: conversation.ask("w2", lambda text: None)]
    calls += [lambda: conversation.retry(lambda text: None)]
    for call in calls:
        with pytest.raises(ServerUnreachable):
            call()
        assert conversation.turns == before


def test_ctrl_c_keeps_what_was_said(conversation: Conversation) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if len(text.split()) == 2 and len(shown) == 2:
            raise KeyboardInterrupt

    answer = conversation.ask("w23 w6 w7", show)
    assert len(answer.split()) == 2 and conversation.turns[-1] == ("assistant", answer)


def run(*arguments: str, stdin: str) -> Result:
    return CliRunner().invoke(app, ["chat", *arguments], input=stdin)


def test_lines_of_a_pipe_are_messages(llama_folder: Path) -> None:
    options = ("--model", str(llama_folder), "--max-new-tokens", "4", "--temperature", "0")
    done = run(*options, stdin="w23 w6 w7\n\n/stats\n/reset\n/nothing\nw23 w6 w7\n")
    assert done.exit_code == 0, done.output
    first, stats, reset, unknown, again = done.stdout.splitlines()
    assert first == again and len(first.split()) == 4
    assert json.loads(stats)["new_tokens"] == 4 and json.loads(stats)["security_bits"] > 128
    assert reset == "A new conversation." and "/help" in unknown


def test_an_error_is_one_line() -> None:
    done = run("--model", "./nothing", stdin="")
    assert done.exit_code == 2 and "check the path" in done.stderr.splitlines()[-1]


def test_a_terminal(llama_folder: Path) -> None:
    """Typed in a pseudo-terminal: a message of two lines, statistics, an unknown command, end of file."""
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    options = ["--model", str(llama_folder), "--max-new-tokens", "4", "--temperature", "0"]
    process = subprocess.Popen([*COMMAND, *options], env=environment, stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen, place = "", 0

    def read(within_s: float) -> None:
        nonlocal seen
        if select.select([parent], [], [], within_s)[0]:
            data = os.read(parent, 65536).decode(errors="replace")
            if "\x1b[6n" in data:
                os.write(parent, b"\x1b[1;1R")  # where the cursor is, as a terminal answers
            seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data)

    def until(words: str, within_s: float = 60) -> None:
        nonlocal place
        end = time.monotonic() + within_s
        while (found := seen.find(words, place)) < 0:
            assert time.monotonic() < end, f"{words!r} did not come; {seen[place:]!r}"
            read(0.2)
        place = found + len(words)

    try:
        until("rows ready")
        os.write(parent, b"w23 w6\x1b\rw7")
        until("w7")
        os.write(parent, b"\r")
        until("a token")
        os.write(parent, b"/stats\r")
        until("since the start")
        os.write(parent, b"/nothing\r")
        until("There is no command")
        end = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(parent, b"\x04")
                read(0.5)
        assert process.poll() == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(parent)
