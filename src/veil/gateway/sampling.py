"""How the next token is chosen: penalties, biases, temperature, nucleus and a draw of one's own, with what was likely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

SEED_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A request's choices. ``temperature`` 0 takes the likeliest token; ``seed`` None draws one from the system.

    ``logprobs`` is None for no log-probabilities, else how many of the likeliest tokens to name beside the one taken.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A token's natural log-probability by the model alone, and the likeliest tokens' (id, log-probability)."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler(LogitsProcessor):  # type: ignore[misc]
    """Draws each token with a generator of its own and leaves no other to choose from.

    So several generations can take turns in one process and each is repeatable by its seed: ``generate`` with
    ``do_sample=False`` takes what is left. ``branch`` numbers the answers of one request.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: int, branch: int = 0) -> None:
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((sampling.seed + branch * SEED_STEP) % (1 << 63))
        self._warpers = []
        if sampling.temperature > 0:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self.last: Drawn | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] → the same with all but the drawn token at minus infinity."""
        raw = scores.float()
        scores = self._biased(input_ids, raw)
        if self._sampling.temperature > 0:
            for warper in self._warpers:
                scores = warper(input_ids, scores)
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        else:
            token = int(scores.argmax())
        self.last = self._drawn(raw[0], token) if self._sampling.logprobs is not None else None
        only = torch.full_like(scores, -torch.inf)
        only[0, token] = 0.0
        return only

    def _biased(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        options = self._sampling
        if not (options.bias or options.frequency_penalty or options.presence_penalty):
            return scores
        scores = scores.clone()
        tokens, counts = torch.unique(input_ids[0, self._prompt_tokens :], return_counts=True)
        scores[0, tokens] -= options.frequency_penalty * counts + options.presence_penalty
        for token, bias in options.bias.items():
            scores[0, token] += bias
        return scores

    def _drawn(self, raw: torch.Tensor, token: int) -> Drawn:
        logs = raw.log_softmax(-1)
        values, ids = logs.topk(min(self._sampling.logprobs or 0, len(logs)))
        return Drawn(float(logs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
