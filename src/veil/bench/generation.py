"""One generation of a fixed number of tokens, with the time of every token after the first; and one pass of a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from veil.sources.quiet import quiet

if TYPE_CHECKING:
    from veil.typing import LanguageModel


@dataclass
class Clock:
    """A streamer that keeps the time at which each token came, and calls ``on_token`` then."""

    on_token: Callable[[], None] = lambda: None
    times: list[float] = field(default_factory=list)

    def put(self, value: torch.Tensor) -> None:
        """The prompt's ids [1, rows] int64 come first, then each token's [1]."""
        self.on_token()
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


@dataclass(frozen=True)
class Times:
    """Seconds of each token after the first, seconds of everything, and all tokens."""

    tokens_s: tuple[float, ...]
    whole_s: float
    tokens: tuple[int, ...]


def random_prompt(model: LanguageModel, rows: int, seed: int = 0) -> torch.Tensor:
    """Token ids [1, rows], where the model is: speed does not depend on the text."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(1, vocabulary, (1, rows), generator=torch.Generator().manual_seed(seed)).to(model.device)


def generate(
    model: LanguageModel,
    prompt: torch.Tensor,
    new_tokens: int,
    on_token: Callable[[], None] = lambda: None,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> Times:
    """Greedy generation of one token and ``new_tokens`` after it, whatever they are, for a prompt [1, rows] of int64 ids.

    ``on_token`` is called as soon as the prompt is taken, then after every token. ``settings`` go to ``generate``.
    """
    clock = Clock(on_token)
    with quiet(), torch.no_grad():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=1 + new_tokens,
            min_new_tokens=1 + new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            streamer=clock,
            **settings,
        )
    steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return Times(tuple(steps[1:]), clock.times[-1] - clock.times[0], tuple(output[0, prompt.shape[1] :].tolist()))


def prefill(model: nn.Module, prompt: torch.Tensor) -> float:
    """Seconds of one pass over a prompt [1, rows] that keeps the last row's logits and fills a key-value cache."""
    start = time.perf_counter()
    with quiet(), torch.no_grad():
        output = model(prompt, logits_to_keep=1, use_cache=True)
    output.logits[0, -1, 0].item()  # a GPU has finished
    return time.perf_counter() - start
