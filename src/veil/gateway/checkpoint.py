"""What a checkpoint says about generation, as far as a gateway obeys it: its tokens' roles, and how it likes to be sampled.

The rest of its ``generation_config`` (beams, stop strings, contrastive search, kinds of caches, …) would be another way of
generating than the one that was asked for, or fail: it never reaches ``generate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import GenerationConfig

if TYPE_CHECKING:
    from veil.typing import Tokenizer

_OBEYED = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "disable_compile",
)


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """How a model likes to be sampled; None where it does not say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def preferences_of(config: object) -> Preferences:
    """What a ``generation_config`` says of sampling, within the ranges; temperature and cuts count where it samples."""
    samples = bool(getattr(config, "do_sample", False))

    def number(name: str, low: float, high: float) -> float | None:
        value = getattr(config, name, None)
        return float(value) if isinstance(value, int | float) and low <= value <= high else None

    limit = getattr(config, "max_new_tokens", None)
    found = Preferences(
        repetition_penalty=number("repetition_penalty", 0.01, 100),
        max_new_tokens=limit if isinstance(limit, int) and limit > 0 else None,
    )
    if not samples:
        return found
    top_k = getattr(config, "top_k", None)
    return Preferences(
        temperature=number("temperature", 0, 2),
        top_p=number("top_p", 0, 1),
        top_k=top_k if isinstance(top_k, int) and top_k > 0 else None,
        min_p=number("min_p", 0, 1),
        typical_p=number("typical_p", 1e-6, 1),
        repetition_penalty=found.repetition_penalty,
        max_new_tokens=found.max_new_tokens,
    )


def plain(config: object) -> GenerationConfig:
    """A ``generation_config`` with the tokens' roles of another and nothing else."""
    said = {name: getattr(config, name, None) for name in _OBEYED}
    return GenerationConfig(**{name: value for name, value in said.items() if value is not None})


def ends_of(config: object, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer."""
    ends = getattr(config, "eos_token_id", None)
    found = set(ends) if isinstance(ends, list) else {ends}
    found.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in found if token is not None)
