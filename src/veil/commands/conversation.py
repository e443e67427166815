"""A conversation with a model: its turns, its files, and how the next message is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from veil.checks.words import answers_words
from veil.commands import chat_files
from veil.commands.choice import ModelChoice
from veil.errors import VeilError
from veil.flag import Flag
from veil.gateway.account import Account, Cancelled
from veil.gateway.failures import ApiError
from veil.gateway.generation import Generator
from veil.gateway.sampling import Sampling
from veil.gateway.served import ServedModel
from veil.gateway.transcript import Piece

_ANNOUNCED_TOKENS = 256


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
    interrupted: Flag = field(default_factory=Flag)

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


class AnswerStats(TypedDict):
    """What the last answer cost, and all of them (``all_``)."""

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    first_token_s: float
    per_token_s: float
    rows: int
    rows_ready: int
    bytes_up: int
    bytes_down: int
    rows_left: int
    all_rows: int
    all_bytes_up: int
    all_bytes_down: int
    security_bits: float
    checked: str | None
    answers: str


def stats_of(conversation: Conversation) -> AnswerStats:
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
