"""`veil chat` on a terminal: an editor for messages, answers as they come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from veil.checks.words import answers_words
from veil.commands.chat_commands import obey
from veil.commands.conversation import AnswerStats, Conversation, stats_of
from veil.commands.hidden_lengths import SAID
from veil.commands.interrupts import interrupts_set
from veil.commands.stream import printable
from veil.errors import VeilError
from veil.gateway.failures import ApiError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.buffer import Buffer

_EXPECT_EVERY_S = 0.7


class Terminal:
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

    def _editor(self) -> PromptSession[str]:
        """A prompt of several lines with this session's history, which stays in memory: messages are private."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import HTML
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        session: PromptSession[str] = PromptSession(
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

    def _typing(self, buffer: Buffer) -> None:
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
                said = obey(self._conversation, words, show)
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


def _summary(stats: AnswerStats) -> str:
    traffic = (stats["bytes_up"] + stats["bytes_down"]) / 1e6
    ready = f"{stats['rows_ready']} of {stats['rows']} rows found theirs ready"
    checked = f" · checked against {stats['checked']}" if stats["checked"] else ""
    return f"{stats['first_token_s']:.1f} s, then {stats['per_token_s']:.3f} s a token · {traffic:.1f} MB · {ready}{checked}"


def _table(stats: AnswerStats) -> Table:
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
