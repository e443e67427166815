"""Several tokens a pass: draft tokens from the text itself or from a small model on the client, checked in one set of trips.

transformers' assisted generation does the speculation and the checking, so greedy output is the same and sampling follows
the same distribution. What is added here is the number of draft tokens, which follows what they bring
(`veil.runtime.pace`). The rows of rejected draft tokens are spent too; they are counted.

The server sees how many rows a pass has. So a pass that found fewer draft tokens than it wanted is filled up with the last
token: the number says how well draft tokens went lately, and not whether the text at hand stood somewhere before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import torch
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from veil.client.stats import Stats
from veil.runtime.pace import Pace

if TYPE_CHECKING:
    from veil.typing import Tokenizer

_LONGEST_MATCH = 3
_SAME_SHARE = 0.99
"""Of a vocabulary; models of one family differ in the names of a few special tokens."""


def check_draft(
    model: PreTrainedModel, draft: PreTrainedModel, own: Tokenizer | None = None, other: Tokenizer | None = None
) -> None:
    """`ValueError` for a draft of another vocabulary, or, with the tokenizers of both, one that numbers it otherwise."""
    size, of_draft = (int(m.config.get_text_config().vocab_size) for m in (model, draft))
    if size != of_draft:
        raise ValueError(f"the draft model knows {of_draft} tokens, the model {size}; it needs the same tokenizer")
    if own is None or other is None:
        return
    numbers, words = own.get_vocab(), other.get_vocab()
    same = sum(words.get(word) == number for word, number in numbers.items())
    if same < _SAME_SHARE * max(len(numbers), len(words)):
        raise ValueError(
            f"the draft model's tokenizer gives {same} of {len(numbers)} tokens the model's numbers; "
            "it needs the same tokenizer"
        )


class SpeculationOptions(TypedDict, total=False):
    """What ``generate`` is told, so that it drafts."""

    prompt_lookup_num_tokens: int
    max_matching_ngram_size: int
    assistant_model: PreTrainedModel


class Speculation:
    """A context in which ``model.generate(**inputs, **options)`` drafts; ``with`` gives the options.

    ``draft`` is ``lookup`` (continue as the text did where its last words stood before) or a model with the same
    vocabulary. Raises `ValueError` for another one.
    """

    def __init__(
        self, model: PreTrainedModel, draft: str | PreTrainedModel, stats: Stats, pace: Pace, ready: Callable[[], int]
    ) -> None:
        self._model = model
        self._draft = draft
        self._stats = stats
        self._pace = pace
        self._ready = ready
        if isinstance(draft, str):
            if draft != "lookup":
                raise ValueError(f"the draft is {draft!r}, expected 'lookup' or a model")
            return
        check_draft(model, draft)

    def __enter__(self) -> SpeculationOptions:
        make = self._model._get_candidate_generator

        def paced(*args: object, **kwargs: object) -> CandidateGenerator:
            return _Paced(make(*args, **kwargs), self._stats, self._pace, self._ready)

        self._model._get_candidate_generator = paced
        if isinstance(self._draft, str):
            return {"prompt_lookup_num_tokens": self._pace.most, "max_matching_ngram_size": _LONGEST_MATCH}
        return {"assistant_model": self._draft}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._model._get_candidate_generator


class _Paced(CandidateGenerator):  # type: ignore[misc]
    """Another generator's draft tokens, as many as the pace says."""

    def __init__(self, inner: CandidateGenerator, stats: Stats, pace: Pace, ready: Callable[[], int]) -> None:
        self._inner = inner
        self._stats = stats
        self._pace = pace
        self._ready = ready
        self._prompt_done = False
        self._rows = self._length = 0
        self._started, self._waited = 0.0, 0.0

    def get_candidates(self, input_ids: torch.LongTensor, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ids [1, tokens] int64 with draft tokens behind them, and the draft's logits [1, drafts, words], if it has any."""
        length = int(input_ids.shape[1])
        candidates: torch.Tensor = input_ids
        logits: torch.Tensor | None = None
        count = self._pace.draft_tokens(self._ready(), self._stats.seconds["prepare"] / max(1, self._stats.rows_made))
        if not self._prompt_done:
            count = max(1, count)  # a draft model has to see the prompt with the first pass
        count = min(count, self._room(length))
        if count > 0:
            self._limit(count)
            candidates, logits = self._inner.get_candidates(input_ids, **kwargs)
            candidates, logits = _exactly(candidates, logits, length + count)
        self._length = int(candidates.shape[1]) - length
        self._rows = self._length + (1 if self._prompt_done else length)
        self._started, self._waited = time.perf_counter(), self._stats.seconds["wait"]
        return candidates, logits

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        """Learn from a pass: what it took and how many draft tokens were right; ids [1, tokens] and scores are not read."""
        matches = int(num_matches)
        waited = self._stats.seconds["wait"] - self._waited
        seconds = time.perf_counter() - self._started - waited
        learn = self._pace.saw_pass if self._prompt_done else self._pace.saw_prompt
        learn(self._rows, seconds)
        self._prompt_done = True
        self._pace.saw_drafts(self._length, matches)
        self._stats.drafted += self._length
        self._stats.accepted += matches
        if self._length:
            self._inner.update_candidate_strategy(input_ids, scores, num_matches)

    def _room(self, length: int) -> int:
        """Draft tokens that fit before the longest text allowed; the model adds one token of its own."""
        names = ("max_length", "main_model_max_length")
        longest = next((getattr(self._inner, name) for name in names if hasattr(self._inner, name)), length)
        return int(longest) - length - 1

    def _limit(self, count: int) -> None:
        for name in ("num_output_tokens", "num_assistant_tokens"):
            if hasattr(self._inner, name):
                setattr(self._inner, name, count)
        for name in ("generation_config", "assistant_generation_config"):
            config = getattr(self._inner, name, None)
            if config is not None:
                config.assistant_confidence_threshold = 0.0  # a doubtful draft would end early, and show it


def _exactly(candidates: torch.Tensor, logits: torch.Tensor | None, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Candidates cut or filled up to ``length``; a filled place is a draft token of the last token with probability one."""
    missing = length - candidates.shape[1]
    if missing <= 0:
        return candidates[:, :length], None if logits is None else logits[:, : logits.shape[1] + missing]
    last = candidates[:, -1:]
    if logits is not None:
        sure = torch.full_like(logits[:, :1], -1e9).scatter(2, last[:, :, None], 0.0)
        logits = torch.cat([logits, sure.expand(-1, missing, -1)], dim=1)
    return torch.cat([candidates, last.expand(-1, missing)], dim=1), logits
