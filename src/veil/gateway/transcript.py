"""From token ids to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from veil.gateway.sampling import Drawn
from veil.gateway.tokens import TokenBytes, shown

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Named:
    """A token, its bytes (of a part of a character, it may be) and its natural log-probability."""

    id: int
    bytes: bytes
    logprob: float

    @property
    def text(self) -> str:
        """The bytes as text."""
        return shown(self.bytes)


@dataclass(frozen=True)
class Scored(Named):
    """A token of the answer, the likeliest in its place, and where in the text it begins."""

    top: tuple[Named, ...]
    offset: int


@dataclass(frozen=True)
class Piece:
    """Text that no later token changes, and the tokens that begin in it (only if log-probabilities were asked for)."""

    text: str
    tokens: tuple[Scored, ...] = ()


class Transcript:
    """The answer of one generation as it grows. ``stopped`` is true once a stop string came; its text is not shown.

    Special tokens are not shown, but for those that are ``written``; a stop string that names one ends the answer where it
    comes. ``before`` are tokens that the text goes on from; they are not shown, but say whether a space comes first.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        token_bytes: TokenBytes | None = None,
        written: frozenset[int] = frozenset(),
        before: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._bytes = token_bytes or TokenBytes(tokenizer)
        self._written = written
        self._stop = tuple(stop)
        names = [self._bytes.text(token) for token in self._bytes.hidden]
        self._marked_stop = tuple(text for text in self._stop if any(name in text for name in names))
        self._marks: list[tuple[int, str]] = []
        self._ids: list[int] = list(before)
        self._window, self._read = 0, len(before)
        self._held = ""
        self._shown = 0
        self._scored: list[Scored] = []
        self.stopped = False
        self.stopped_by: str | None = None

    def add(self, token: int, drawn: Drawn | None = None, *, may_stop: bool = True) -> Piece:
        """Take the next token; what can be shown now. Without ``may_stop`` a stop string that is complete is text."""
        self._ids.append(token)
        before, after = self._decode(self._ids[self._window : self._read]), self._decode(self._ids[self._window :])
        if drawn is not None:
            self._score(token, drawn)
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self._held += after[len(before) :]
            self._window, self._read = self._read, len(self._ids)
        if token in self._written:
            self._held += after[len(before) :] if self._read < len(self._ids) else ""
            self._held += self._bytes.text(token)
            self._window = self._read = len(self._ids)
        else:
            self._mark(token)
        return self._release(len(self._held) - self._kept_back(may_stop))

    def close(self, token: int) -> None:
        """Take the token that ends the answer; it is not shown, but may complete a stop string."""
        self._mark(token)
        if not self.stopped:
            self._kept_back(True)

    def end(self) -> Piece:
        """What was held back."""
        if not self.stopped:
            before, after = self._decode(self._ids[self._window : self._read]), self._decode(self._ids[self._window :])
            self._held += after[len(before) :]
            self._window = self._read = len(self._ids)
            self._kept_back(True)
        return self._release(len(self._held), last=True)

    def _mark(self, token: int) -> None:
        """Note where a special token stands, for the stop strings that name one."""
        if self._marked_stop and token in self._bytes.hidden:
            self._marks.append((self._shown + len(self._held), self._bytes.text(token)))

    def _kept_back(self, may_stop: bool) -> int:
        """Characters at the end that may be the beginning of a stop string; the text is cut where one is complete."""
        woven, at = self._woven()
        if may_stop:
            places = [(place, stop) for stop in self._stop if (place := self._held.find(stop)) >= 0]
            places += [(at[place], stop) for stop in self._marked_stop if (place := woven.find(stop)) >= 0]
            if places:
                first, self.stopped_by = min(places)
                self._held, self.stopped = self._held[:first], True
                return 0
        kept = beginning(self._held, self._stop)
        marked = beginning(woven, self._marked_stop)
        return max(kept, len(self._held) - at[len(woven) - marked])

    def _woven(self) -> tuple[str, list[int]]:
        """The held text with the special tokens in it, and for each place in it (and its end) the place in the held text."""
        if not self._marked_stop:
            return self._held, list(range(len(self._held) + 1))
        text, at, last = "", [], 0
        for place, name in [*self._marks, (self._shown + len(self._held), "")]:
            place -= self._shown
            text += self._held[last:place] + name
            at += [*range(last, place), *[place] * len(name)]
            last = place
        return text, [*at, last]

    def _release(self, count: int, last: bool = False) -> Piece:
        text, self._held = self._held[:count], self._held[count:]
        self._shown += len(text)
        self._marks = [(place, name) for place, name in self._marks if place >= self._shown]
        if self.stopped:
            tokens = [token for token in self._scored if token.offset < self._shown]
            self._scored = []
        else:
            tokens = [token for token in self._scored if token.offset < self._shown or last]
            self._scored = self._scored[len(tokens) :]
        return Piece(text, tuple(tokens))

    def _score(self, token: int, drawn: Drawn) -> None:
        context = self._ids[max(0, len(self._ids) - 5) : -1]
        while context and self._bytes.is_byte(context[-1]):
            context.pop()
        before = self._decode(context, special=True)
        top = tuple(Named(other, self._bytes_of(other, context, before), logprob) for other, logprob in drawn.top)
        offset = self._shown + len(self._held)
        self._scored.append(Scored(token, self._bytes_of(token, context, before), drawn.logprob, top, offset))

    def _bytes_of(self, token: int, context: list[int], before: str) -> bytes:
        exact = self._bytes.of(token)
        if exact is not None:
            return exact
        return self._decode([*context, token], special=True)[len(before) :].encode()

    def _decode(self, ids: list[int], special: bool = False) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return text


def beginning(text: str, stops: Sequence[str]) -> int:
    """The longest end of a text that begins one of the stop strings and does not complete it."""
    longest = max(map(len, stops), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(len(stop) > count and stop.startswith(text[-count:]) for stop in stops):
            return count
    return 0
