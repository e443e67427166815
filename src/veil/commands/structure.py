"""What an answer of `veil generate` must look like: a JSON schema that it follows, texts that end it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from veil.gateway.checkpoint import ends_of
from veil.gateway.failures import ApiError
from veil.gateway.grammar import Grammar, Grammars
from veil.gateway.transcript import beginning

if TYPE_CHECKING:
    from veil.typing import LanguageModel


def grammar_of(path: Path, model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Grammar, frozenset[int]]:
    """The grammar of a file with a JSON schema, and the tokens that end an answer. `ValueError` for what is none."""
    try:
        schema = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is no JSON; --json-schema takes a file with a JSON schema") from None
    ends = ends_of(getattr(model, "generation_config", None), tokenizer)
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    try:
        return Grammars(tokenizer, vocabulary, ends).schema(schema, "--json-schema"), ends
    except ApiError as error:
        raise ValueError(f"{path}: {error.message}") from None


T = TypeVar("T")


class SchemaMask(LogitsProcessor):  # type: ignore[misc]
    """Leaves the logits of what may come next, for each answer of a batch; after its end an answer only ends."""

    def __init__(self, grammar: Grammar, ends: frozenset[int], answers: int = 1) -> None:
        self._ways = [grammar.matcher() for _ in range(answers)]
        self._over = [False] * answers
        self._ends = torch.tensor(sorted(ends), dtype=torch.long)
        self._length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [answers, vocabulary] → the same with minus infinity for what may not come. `ValueError`."""
        if self._length is not None:
            for place, token in enumerate(input_ids[:, -1].tolist()):
                self._take(place, token)
        self._length = input_ids.shape[1]
        allowed = torch.stack([self._allowed(place, scores.shape[1]) for place in range(len(self._ways))])
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _take(self, place: int, token: int) -> None:
        if self._over[place]:
            return
        if token in self._ends:
            self._over[place] = True
            return
        self._told(lambda: self._ways[place].take(token))
        self._over[place] = self._ways[place].over

    def _allowed(self, place: int, vocabulary: int) -> torch.Tensor:
        if not self._over[place]:
            return self._told(lambda: self._ways[place].allowed(vocabulary))
        only = torch.zeros(vocabulary, dtype=torch.bool)
        only[self._ends] = True
        return only

    def _told(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except ApiError as error:
            raise ValueError(error.message) from None


class Until:
    """Passes text on up to a stop: what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str], write: Callable[[str], None]) -> None:
        self._stops, self._write, self._held, self.stopped = tuple(stops), write, "", False

    def __call__(self, text: str) -> None:
        """Take text; a line's end is the answer's, and stays."""
        if self.stopped:
            return
        self._held += text
        cut = cut_at(self._held, self._stops)
        self.stopped = len(cut) < len(self._held)
        kept = 0 if self.stopped else beginning(self._held, self._stops)
        shown = cut[: len(cut) - kept]
        self._held = self._held[len(shown) :]
        self._write(shown + ("\n" if self.stopped else ""))

    def finish(self) -> None:
        """Show what was held back."""
        if not self.stopped and self._held:
            self._write(self._held)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
