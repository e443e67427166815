"""`veil chat`: a conversation in the terminal; rows are made while one types."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from veil.checks.words import answers_words
from veil.commands import chat_files
from veil.commands.choice import ModelChoice
from veil.commands.hidden_lengths import SAID
from veil.commands.interrupts import interrupts_set
from veil.commands.model_choice import opened
from veil.commands.stream import printable
from veil.errors import VeilError
from veil.gateway.account import Account, Cancelled
from veil.gateway.failures import ApiError
from veil.gateway.generation import Generator
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel
from veil.gateway.transcript import Piece

_EXPECT_EVERY_S = 0.7
_ANNOUNCED_TOKENS = 256

_HELP = """\
Enter sends · Alt+Enter (or Esc, then Enter) starts a line · Ctrl-C stops an answer · Ctrl-D leaves
/reset         begin a new conversation
/retry         answer the last message once more
/system TEXT   instructions for the model; without a text, what they are; - for none
/attach FILE   send a text file with the next message
/save FILE     write the conversation into a file
/load FILE     go on with one that was saved
/model NAME    go on with another model; without a name, which it is
/stats         what the last answer cost, and everything since the start
/help          this"""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """The options of `veil chat`."""

    choice: ModelChoice
    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.3
    top_p: float = 1.0
    seed: int | None = None


@dataclass(eq=False)
class Conversation:
    """The turns so far and how the next is answered. Not for several threads."""

    served: ServedModel
    request: ChatOptions
    generator: Generator = field(init=False)
    open_model: Callable[[str], ServedModel] | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    last: Account | None = None
    stopped: bool = False
    interrupted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.system = self.request.system
        self.attached: list[str] = []
        self._saved: set[Path] = set()
        self.use(self.served)
        self.reset()

    def use(self, served: ServedModel) -> None:
        """Go on with a model."""
        served.need("text")
        self.served, self.generator = served, Generator(served, conversation=True)

    def reset(self) -> None:
        """Begin anew."""
        self.turns = [("system", self.system)] if self.system else []
        self.last = None
        self.attached = []
        self.generator.forget()

    def instruct(self, words: str) -> str:
        """Say what the instructions are, or change them: ``-`` for none."""
        if words:
            self.system = "" if words == "-" else words
            self.turns = [turn for turn in self.turns if turn[0] != "system"]
            self.turns = [("system", self.system), *self.turns] if self.system else self.turns
        return f"The instructions: {self.system}" if self.system else "There are no instructions."

    def attach(self, name: str) -> str:
        """Have a file sent with the next message."""
        text = chat_files.attachment(Path(name).expanduser())
        self.attached.append(text)
        self.expect(sum(map(len, self.attached)))
        return f"{Path(name).name} goes with the next message."

    def save(self, name: str) -> str:
        """Write the conversation; a file that is not from here is not replaced."""
        path = Path(name).expanduser()
        chat_files.save(path, self.served.name, self.turns, replace=path.resolve() in self._saved)
        self._saved.add(path.resolve())
        return f"Saved in {path}; it is readable text."

    def load(self, name: str) -> str:
        """Go on with a saved conversation."""
        path = Path(name).expanduser()
        self.turns = chat_files.load(path)
        self._saved.add(path.resolve())
        self.system = next((text for role, text in self.turns if role == "system"), "")
        return (
            f"{len([role for role, _ in self.turns if role == 'user'])} messages; the last answer can be tried with /retry."
        )

    def switch(self, name: str) -> str:
        """Say which model it is, or go on with another."""
        if name:
            if self.open_model is None:
                raise ValueError("this conversation has one model")
            self.use(self.open_model(name))
        return f"The model is {self.served.name}."

    def expect(self, characters: int) -> None:
        """Have rows made for a message of about so many characters."""
        self.served.expect(characters, min(self.request.max_tokens, _ANNOUNCED_TOKENS))

    def ask(self, words: str, show: Callable[[str], None]) -> str:
        """The answer to a message, shown as it comes; Ctrl-C ends it early. A failure leaves the conversation as it was."""
        turns = [*self.turns, ("user", "\n\n".join([*self.attached, words]))]
        account, parts = Account(), []
        self.interrupted.clear()
        self.stopped = False

        def emit(piece: Piece) -> None:
            parts.append(piece.text)
            show("".join(parts))

        ids = self.served.chat_ids(turns)
        try:
            self.generator.answer(ids, self._sampling(), 0, account, self.interrupted, emit)
        except (KeyboardInterrupt, Cancelled):
            self.stopped = True
            show("".join(parts))
        self.last, self.attached = account, []
        answer = "".join(parts)
        self.turns = [*turns, ("assistant", answer)]
        return answer

    def retry(self, show: Callable[[str], None]) -> str:
        """The last message answered once more; `ValueError` when there is none."""
        if not self.turns or self.turns[-1][0] != "assistant":
            raise ValueError("there is no message yet")
        words = self.turns[-2][1]
        before, self.turns = self.turns, self.turns[:-2]
        waiting, self.attached = self.attached, []  # the message has its files in it
        try:
            return self.ask(words, show)
        except (VeilError, ApiError):
            self.turns = before
            raise
        finally:
            self.attached = waiting

    def _sampling(self) -> Sampling:
        request = self.request
        return Sampling(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )


def run(request: ChatOptions) -> None:
    """Talk until end of file; a terminal gets an editor, anything else is read line by line. veil's errors."""
    with ExitStack() as models:
        served = models.enter_context(opened(request.choice))

        def open_model(name: str) -> ServedModel:
            choice = request.choice
            if choice.server is not None:
                choice = replace(choice, server_bundle=name, bundle=None, name=None)
            else:
                choice = replace(choice, model=name, bundle=None, name=None)
            with ExitStack() as fresh:
                found = fresh.enter_context(opened(choice))
                models.close()  # the one before
                models.push(fresh.pop_all())
            return found

        conversation = Conversation(served, request, open_model)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _Terminal(conversation).run()
        else:
            _lines(conversation)


def _lines(conversation: Conversation) -> None:
    """One message a line on standard input, one answer each on standard output."""
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            answer = _obey(conversation, line.strip(), lambda text: None)
        except (ApiError, ValueError) as error:  # a command's; the next line may be right
            print(f"veil: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            continue
        if answer is None:
            hidden = conversation.served.hybrid.padding is not None
            with interrupts_set(conversation.interrupted, SAID) if hidden else nullcontext():
                answer = conversation.ask(line.strip(), lambda text: None)
        print(printable(answer), flush=True)


def _obey(conversation: Conversation, line: str, show: Callable[[str], None]) -> str | None:
    """What a command has to say; None if the line is a message."""
    name, _, rest = line.partition(" ")
    with_text = {"/system": conversation.instruct, "/model": conversation.switch}
    with_file = {"/attach": conversation.attach, "/save": conversation.save, "/load": conversation.load}
    if line == "/reset":
        conversation.reset()
        return "A new conversation."
    if line == "/help":
        return _HELP
    if line == "/stats":
        return json.dumps(stats_of(conversation))
    if line == "/retry":
        return conversation.retry(show)
    if name in with_text:
        return with_text[name](rest.strip())
    if name in with_file:
        return with_file[name](rest.strip()) if rest.strip() else f"{name} needs a file: {name} FILE"
    if line.startswith("/") and line[1:].isalpha():
        return f"There is no command {line}; /help lists them."
    return None


def stats_of(conversation: Conversation) -> dict[str, Any]:
    """What the last answer cost, and all of them."""
    account, total, served = conversation.last or Account(), conversation.generator.totals, conversation.served
    tokens, rows = account.new_tokens, account.stats.rows
    first = account.first_token - account.asked if account.first_token else 0.0
    return {
        "prompt_tokens": account.prompt_tokens,
        "cached_tokens": account.cached_tokens,
        "new_tokens": tokens,
        "first_token_s": round(first, 3),
        "per_token_s": round((account.last_token - account.first_token) / max(1, tokens - 1), 4) if tokens > 1 else 0.0,
        "rows": rows,
        "rows_ready": account.stats.rows_ready,
        "bytes_up": account.stats.bytes_up_online + account.stats.bytes_up_offline,
        "bytes_down": account.stats.bytes_down_online + account.stats.bytes_down_offline,
        "rows_left": served.hybrid.rows_ready.tokens,
        "all_rows": total.rows,
        "all_bytes_up": total.bytes_up_online + total.bytes_up_offline,
        "all_bytes_down": total.bytes_down_online + total.bytes_down_offline,
        "security_bits": served.security_bits,
        "checked": served.hybrid.checked_against,
        "answers": answers_words(served.mode, served.hybrid.checked_against),
    }


class _Terminal:
    """The conversation on a terminal: an editor for messages, answers as they come."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._console = Console()
        self._announced = 0.0

    def run(self) -> None:
        """Until end of file."""
        session = self._editor()
        served = self._conversation.served
        place = f"on {served.server}" if served.server else "in this process"
        bits = f"{served.security_bits:g} bits" if served.security_bits else "nothing is encrypted"
        answers = answers_words(served.mode, served.hybrid.checked_against)
        self._console.print(Text(f"{served.name} {place} · {bits} · {answers} · /help", style="dim"))
        while True:
            try:
                words = session.prompt().strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if words:
                self._turn(words)

    def _editor(self) -> Any:
        """A prompt of several lines with this session's history, which stays in memory: messages are private."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import HTML
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        session: Any = PromptSession(
            HTML("<b>› </b>"),
            multiline=True,
            prompt_continuation="  ",
            key_bindings=keys,
            history=InMemoryHistory(),
            bottom_toolbar=self._status,
            refresh_interval=0.5,
        )
        session.default_buffer.on_text_changed += self._typing
        return session

    def _typing(self, buffer: Any) -> None:
        """Rows are made for what is being written."""
        now = time.monotonic()
        if buffer.text and not buffer.text.startswith("/") and now - self._announced > _EXPECT_EVERY_S:
            self._announced = now
            self._conversation.expect(len(buffer.text))

    def _status(self) -> str:
        ready = self._conversation.served.hybrid.rows_ready
        return f" {ready.tokens} rows ready, {ready.prompt_rows} for the prompt · Enter sends, Alt+Enter new line, /help"

    def _turn(self, words: str) -> None:
        if words == "/stats":
            self._console.print(_table(stats_of(self._conversation)))
            return
        try:
            with (
                interrupts_set(self._conversation.interrupted, SAID if self._conversation.served.hybrid.padding else ""),
                Live(
                    Text("…", style="dim"), console=self._console, refresh_per_second=12, vertical_overflow="visible"
                ) as live,
            ):
                show = lambda text: live.update(_shown(text))  # noqa: E731
                said = _obey(self._conversation, words, show)
                if said is None:
                    self._conversation.ask(words, show)
                elif words != "/retry":
                    live.update(Text(said, style="dim"))
        except (VeilError, ApiError, ValueError) as error:
            self._console.print(Text(" ".join(str(error).split()), style="red"))
            return
        except KeyboardInterrupt:  # the second one: whatever it waited for
            self._console.print(Text("stopped", style="dim"))
            return
        account = self._conversation.last
        if self._conversation.stopped and (said is None or words == "/retry"):
            self._console.print(Text("stopped", style="dim"))
        if account is not None and (said is None or words == "/retry"):
            self._console.print(Text(_summary(stats_of(self._conversation)), style="dim"))


def _shown(text: str) -> Markdown:
    """An answer as Markdown, without links to follow and without control characters."""
    return Markdown(printable(text), hyperlinks=False)


def _summary(stats: dict[str, Any]) -> str:
    traffic = (stats["bytes_up"] + stats["bytes_down"]) / 1e6
    ready = f"{stats['rows_ready']} of {stats['rows']} rows found theirs ready"
    checked = f" · checked against {stats['checked']}" if stats["checked"] else ""
    return f"{stats['first_token_s']:.1f} s, then {stats['per_token_s']:.3f} s a token · {traffic:.1f} MB · {ready}{checked}"


def _table(stats: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in (
        ("last answer", f"{stats['prompt_tokens']} tokens in the prompt, {stats['cached_tokens']} of them not sent again"),
        ("", f"{stats['new_tokens']} generated"),
        ("time", f"{stats['first_token_s']:.2f} s until the first token, {stats['per_token_s']:.3f} s each after it"),
        ("rows", f"{stats['rows_ready']} of {stats['rows']} found theirs ready, {stats['rows_left']} ready now"),
        ("traffic", f"{stats['bytes_up']:,} bytes up, {stats['bytes_down']:,} down"),
        (
            "since the start",
            f"{stats['all_rows']} rows, {stats['all_bytes_up']:,} bytes up, {stats['all_bytes_down']:,} down",
        ),
        ("security", f"{stats['security_bits']:g} bits" if stats["security_bits"] else "none: nothing is encrypted"),
        ("answers", stats["answers"]),
    ):
        table.add_row(name, value)
    return table
