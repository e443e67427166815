"""Answers of a given form: texts that end them, and logits of what may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from veil.commands.structure import SchemaMask, Until, cut_at

END = 9


@pytest.mark.parametrize(
    ("stops", "shown"),
    [([], "one two three"), (["two"], "one "), (["three", "two"], "one "), (["four"], "one two three"), (["one"], "")],
)
def test_a_text_ends_before_its_first_stop(stops: Sequence[str], shown: str) -> None:
    assert cut_at("one two three", stops) == shown


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_stop_is_seen_however_the_text_comes(size: int) -> None:
    text, written = "aab aabb <en <end> more", ""

    def write(piece: str) -> None:
        nonlocal written
        written += piece
        assert "<end" not in written

    until = Until(["<end>"], write)
    for start in range(0, len(text), size):
        until(text[start : start + size])
    until.finish()
    assert written == "aab aabb <en \n" and until.stopped


def test_what_only_began_like_a_stop_is_shown_at_the_end() -> None:
    written: list[str] = []
    until = Until(["<end>"], written.append)
    until("text <en")
    assert "".join(written) == "text "
    until.finish()
    assert "".join(written) == "text <en" and not until.stopped


class Letters:
    """A grammar of two tokens in a row: first 1 or 2, then 3."""

    def matcher(self) -> Letters:
        new = Letters()
        new.place = 0
        return new

    place = 0

    def take(self, token: int) -> None:
        assert token in ((1, 2), (3,))[self.place]
        self.place += 1

    @property
    def over(self) -> bool:
        return self.place == 2

    def allowed(self, vocabulary: int) -> torch.Tensor:
        found = torch.zeros(vocabulary, dtype=torch.bool)
        found[list(((1, 2), (3,))[self.place])] = True
        return found


def open_tokens(scores: torch.Tensor) -> list[list[int]]:
    return [torch.nonzero(torch.isfinite(row)).flatten().tolist() for row in scores]


def test_only_what_may_come_keeps_its_logit_for_each_answer() -> None:
    grammar: Any = Letters()
    mask, scores = SchemaMask(grammar, frozenset({END}), answers=2), torch.zeros(2, 10)
    prompt = torch.tensor([[5, 5], [5, 5]])
    assert open_tokens(mask(prompt, scores)) == [[1, 2], [1, 2]]
    ids = torch.cat([prompt, torch.tensor([[1], [END]])], dim=1)
    assert open_tokens(mask(ids, scores)) == [[3], [END]], "an answer that ended only ends"
    ids = torch.cat([ids, torch.tensor([[3], [END]])], dim=1)
    assert open_tokens(mask(ids, scores)) == [[END], [END]]
