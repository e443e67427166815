"""`veil chat`: a conversation in the terminal; rows are made while one types."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from veil.commands.interrupts import interrupting
from veil.commands.served import ModelChoice, opened
from veil.commands.stream import printable
from veil.errors import VeilError
from veil.gateway.failures import ApiError
from veil.gateway.generation import Account, Cancelled, Generator
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel
from veil.gateway.transcript import Piece

_EXPECT_EVERY_S = 0.7
_ANNOUNCED_TOKENS = 256

_HELP = """\
Enter sends · Alt+Enter (or Esc, then Enter) starts a line · Ctrl-C stops an answer · Ctrl-D leaves
/reset   begin a new conversation
/retry   answer the last message once more
/stats   what the last answer cost, and everything since the start
/help    this"""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
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
    request: ChatRequest
    generator: Generator = field(init=False)
    turns: list[tuple[str, str]] = field(default_factory=list)
    last: Account | None = None

    def __post_init__(self) -> None:
        self.served.need("text")
        self.generator = Generator(self.served, conversation=True)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.turns = [("system", self.request.system)] if self.request.system else []
        self.last = None
        self.generator.forget()

    def expect(self, characters: int) -> None:
        """Have rows made for a message of about so many characters."""
        self.served.expect(characters, min(self.request.max_tokens, _ANNOUNCED_TOKENS))

    def ask(self, words: str, show: Callable[[str], None]) -> str:
        """The answer to a message, shown as it comes; Ctrl-C ends it early. A failure leaves the conversation as it was."""
        turns = [*self.turns, ("user", words)]
        account, cancelled, parts = Account(), threading.Event(), []

        def emit(piece: Piece) -> None:
            parts.append(piece.text)
            show("".join(parts))

        ids = self.served.chat_ids(turns)
        try:
            with interrupting(cancelled, hidden=self.served.hybrid.padding is not None):
                self.generator.answer(ids, self._sampling(), 0, account, cancelled, emit)
        except (KeyboardInterrupt, Cancelled):
            show("".join(parts))
        self.last = account
        answer = "".join(parts)
        self.turns = [*turns, ("assistant", answer)]
        return answer

    def retry(self, show: Callable[[str], None]) -> str:
        """The last message answered once more; `ValueError` when there is none."""
        if not self.turns or self.turns[-1][0] != "assistant":
            raise ValueError("there is no message yet")
        words = self.turns[-2][1]
        before, self.turns = self.turns, self.turns[:-2]
        try:
            return self.ask(words, show)
        except (VeilError, ApiError):
            self.turns = before
            raise

    def _sampling(self) -> Sampling:
        request = self.request
        return Sampling(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )


def run(request: ChatRequest) -> None:
    """Talk until end of file; a terminal gets an editor, anything else is read line by line. veil's errors."""
    with opened(request.choice) as served:
        conversation = Conversation(served, request)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _Terminal(conversation).run()
        else:
            _lines(conversation)


def _lines(conversation: Conversation) -> None:
    """One message a line on standard input, one answer each on standard output."""
    for line in sys.stdin:
        if not line.strip():
            continue
        answer = _obey(conversation, line.strip(), lambda text: None)
        if answer is None:
            answer = conversation.ask(line.strip(), lambda text: None)
        print(printable(answer), flush=True)


def _obey(conversation: Conversation, line: str, show: Callable[[str], None]) -> str | None:
    """What a command has to say; None if the line is a message."""
    if line == "/reset":
        conversation.reset()
        return "A new conversation."
    if line == "/help":
        return _HELP
    if line == "/stats":
        return json.dumps(stats_of(conversation))
    if line == "/retry":
        return conversation.retry(show)
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
        "bytes_up": account.stats.bytes_up_online + account.stats.bytes_up_ahead,
        "bytes_down": account.stats.bytes_down_online + account.stats.bytes_down_ahead,
        "rows_left": served.hybrid.rows_ready.tokens,
        "all_rows": total.rows,
        "all_bytes_up": total.bytes_up_online + total.bytes_up_ahead,
        "all_bytes_down": total.bytes_down_online + total.bytes_down_ahead,
        "security_bits": served.security_bits,
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
        self._console.print(Text(f"{served.name} {place} · {bits} · /help", style="dim"))
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
            with Live(
                Text("…", style="dim"), console=self._console, refresh_per_second=12, vertical_overflow="visible"
            ) as live:
                show = lambda text: live.update(_shown(text))  # noqa: E731
                said = _obey(self._conversation, words, show)
                if said is None:
                    self._conversation.ask(words, show)
                elif words != "/retry":
                    live.update(Text(said, style="dim"))
        except (VeilError, ApiError, ValueError) as error:
            self._console.print(Text(" ".join(str(error).split()), style="red"))
            return
        account = self._conversation.last
        if account is not None and (said is None or words == "/retry"):
            self._console.print(Text(_summary(stats_of(self._conversation)), style="dim"))


def _shown(text: str) -> Markdown:
    """An answer as Markdown, without links to follow and without control characters."""
    return Markdown(printable(text), hyperlinks=False)


def _summary(stats: dict[str, Any]) -> str:
    traffic = (stats["bytes_up"] + stats["bytes_down"]) / 1e6
    ready = f"{stats['rows_ready']} of {stats['rows']} rows found theirs ready"
    return f"{stats['first_token_s']:.1f} s, then {stats['per_token_s']:.3f} s a token · {traffic:.1f} MB · {ready}"


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
    ):
        table.add_row(name, value)
    return table
