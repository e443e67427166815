"""From token ids to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from veil.gateway.sampling import Drawn

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Scored:
    """A token of the answer as text, its natural log-probability, and the likeliest in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    offset: int


@dataclass(frozen=True)
class Piece:
    """Text that no later token changes, and the tokens that begin in it (only if log-probabilities were asked for)."""

    text: str
    tokens: tuple[Scored, ...] = ()


class Transcript:
    """The answer of one generation as it grows. ``stopped`` is true once a stop string came; its text is not shown."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window = self._read = 0
        self._held = ""
        self._shown = 0
        self._scored: list[Scored] = []
        self.stopped = False

    def add(self, token: int, drawn: Drawn | None = None) -> Piece:
        """Take the next token; what can be shown now."""
        self._ids.append(token)
        before, after = self._decode(self._ids[self._window : self._read]), self._decode(self._ids[self._window :])
        if drawn is not None:
            self._score(token, drawn)
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self._held += after[len(before) :]
            self._window, self._read = self._read, len(self._ids)
        return self._release(len(self._held) - self._kept_back())

    def end(self) -> Piece:
        """What was held back."""
        if not self.stopped:
            before, after = self._decode(self._ids[self._window : self._read]), self._decode(self._ids[self._window :])
            self._held += after[len(before) :]
            self._window = self._read = len(self._ids)
            self._kept_back()
        return self._release(len(self._held), last=True)

    def _kept_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string; the text is cut where one is complete."""
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self._held, self.stopped = self._held[: min(places)], True
            return 0
        longest = max(map(len, self._stop), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stop):
                return count
        return 0

    def _release(self, count: int, last: bool = False) -> Piece:
        text, self._held = self._held[:count], self._held[count:]
        self._shown += len(text)
        if self.stopped:
            tokens = [token for token in self._scored if token.offset < self._shown]
            self._scored = []
        else:
            tokens = [token for token in self._scored if token.offset < self._shown or last]
            self._scored = self._scored[len(tokens) :]
        return Piece(text, tuple(tokens))

    def _score(self, token: int, drawn: Drawn) -> None:
        context = self._ids[max(0, len(self._ids) - 5) : -1]
        before = self._decode(context, special=True)
        names = [(self._decode([*context, other], special=True)[len(before) :], logprob) for other, logprob in drawn.top]
        text = self._decode([*context, token], special=True)[len(before) :]
        shown_and_held = self._shown + len(self._held)
        self._scored.append(Scored(text, drawn.logprob, tuple(names), shown_and_held))

    def _decode(self, ids: list[int], special: bool = False) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return text
