"""How the next token is chosen: penalties, biases, bans, a grammar, then temperature, cuts and a draw of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from transformers import LogitsProcessor, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from veil.errors import NotFiniteActivation

SEED_STEP = 0x9E3779B97F4A7C15

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which is not JSON; OpenAI's value."""


class Matcher(Protocol):
    """A grammar on its way through one answer."""

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""

    def allowed(self, vocabulary: int) -> torch.Tensor:
        """Which tokens may come next, bool [vocabulary]; at least one."""

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""


class Constraint(Protocol):
    """What answers must look like; `veil.gateway.grammar` makes them."""

    def matcher(self) -> Matcher:
        """The way through one answer."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A request's choices. ``temperature`` 0 takes the likeliest token; ``seed`` None draws one from the system.

    ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``typical_p`` 1 cut nothing. ``stop_tokens`` end an answer as the model's own
    ends do; none of them comes before ``min_tokens``, and with ``ignore_eos`` the model's own never. ``grammar`` is one that
    `veil.gateway.grammar` made; ``written`` are special tokens that are shown, since calls of tools are written with them.
    ``logprobs`` is None for no log-probabilities, else how many of the likeliest tokens to name
    beside the one taken. ``adapter`` is one that the model was loaded with, or None. With ``going`` the answer is more
    of the prompt's last turn.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    grammar: Constraint | None = None
    written: frozenset[int] = frozenset()
    adapter: str | None = None
    going: bool = False


@dataclass(frozen=True)
class Drawn:
    """A token's natural log-probability by the model alone, and the likeliest tokens' (id, log-probability); all finite."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler(LogitsProcessor):  # type: ignore[misc]
    """Draws each token with a generator of its own and leaves no other to choose from.

    So several generations can take turns in one process and each is repeatable by its seed: ``generate`` with
    ``do_sample=False`` takes what is left. ``branch`` numbers the answers of one request; ``ends`` are the model's own.
    """

    def __init__(
        self, sampling: Sampling, ends: frozenset[int] = frozenset(), branch: int = 0, matcher: Matcher | None = None
    ) -> None:
        self._sampling = sampling
        self._start: int | None = None
        self._banned = torch.tensor(sorted(ends), dtype=torch.long) if sampling.ignore_eos else None
        self._ends = torch.tensor(sorted(ends | sampling.stop_tokens), dtype=torch.long)
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((sampling.seed + branch * SEED_STEP) % (1 << 63))
        self._matcher = matcher
        self._warpers = _warpers(sampling)
        self.last: Drawn | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] → the same with all but the drawn token at minus infinity. `NotFiniteActivation`."""
        if self._start is None:
            self._start = input_ids.shape[1]  # the prompt, or what a decoder begins with
        raw = scores.double()
        highest = float(raw.max())
        if not -torch.inf < highest < torch.inf:  # NaN neither
            raise NotFiniteActivation("the model's logits are NaN or infinite; generation stops here")
        wanted = self._allowed(self._biased(input_ids, raw), input_ids.shape[1] - self._start)
        token = self._draw(input_ids, wanted)
        self.last = self._drawn(raw[0], token) if self._sampling.logprobs is not None else None
        if self._matcher is not None:
            self._matcher.take(token)
        only = torch.full_like(scores, -torch.inf)
        only[0, token] = 0.0
        return only

    def _draw(self, input_ids: torch.Tensor, scores: torch.Tensor) -> int:
        temperature = self._sampling.temperature
        if temperature == 0:
            return int(scores.argmax())
        scores = (scores - scores.max()) / temperature  # at most 0: however small the temperature, no infinity meets another
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))

    def _biased(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        options = self._sampling
        penalties = options.frequency_penalty or options.presence_penalty
        if not (options.bias or penalties or options.repetition_penalty != 1):
            return scores
        scores = scores.clone()
        if options.repetition_penalty != 1:
            seen = torch.unique(input_ids[0])
            had = scores[0, seen]
            scores[0, seen] = torch.where(had < 0, had * options.repetition_penalty, had / options.repetition_penalty)
        if penalties:
            tokens, counts = torch.unique(input_ids[0, self._start :], return_counts=True)
            scores[0, tokens] -= options.frequency_penalty * counts + options.presence_penalty
        for token, bias in options.bias.items():
            scores[0, token] += bias
        return scores

    def _allowed(self, scores: torch.Tensor, made: int) -> torch.Tensor:
        """The scores with what may not come at minus infinity. A grammar goes before bans: it alone leaves no choice."""
        if self._matcher is not None:
            allowed = self._matcher.allowed(scores.shape[1])
            scores = scores.masked_fill(~allowed, -torch.inf)
            if not torch.isfinite(scores).any():  # the checkpoint suppresses all that the grammar allows
                scores = torch.where(allowed, 0.0, -torch.inf).to(scores.dtype)[None]
        banned = self._ends if made < self._sampling.min_tokens else self._banned
        if banned is None or not len(banned):
            return scores
        left = scores.index_fill(1, banned, -torch.inf)
        return left if torch.isfinite(left).any() else scores

    def _drawn(self, raw: torch.Tensor, token: int) -> Drawn:
        logs = raw.log_softmax(-1).clamp(min=LEAST_LOGPROB)
        values, ids = logs.topk(min(self._sampling.logprobs or 0, len(logs)))
        return Drawn(float(logs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    """The cuts in the order in which transformers makes them."""
    made: list[LogitsProcessor] = []
    if sampling.top_k > 0:
        made.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        made.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        made.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1:
        made.append(TypicalLogitsWarper(sampling.typical_p))
    return made
