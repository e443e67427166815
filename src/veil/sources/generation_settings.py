"""What of a half's generation settings is taken: fields that change which words are likely, not what is sent for them.

Settings that guess, search in beams, return several answers or bring their own code change how many rows go up, and when,
with the text; a half is somebody else's data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from veil.errors import BundleError

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from veil.typing import LanguageModel

_MOST_IDS = 4096
_TOKENS = frozenset({"eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"})
_TOKENS |= {"forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"}
_COUNTS = frozenset({"max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k"})
_NUMBERS = frozenset({"temperature", "top_p", "min_p", "typical_p", "repetition_penalty"})
_SWITCHES = frozenset({"do_sample"})
FIELDS = _TOKENS | _COUNTS | _NUMBERS | _SWITCHES


def harmless(fields: Mapping[str, object]) -> dict[str, object]:
    """Those of some generation settings that are taken; `BundleError` for one of another type or size than it should be."""
    taken = {name: value for name, value in fields.items() if name in FIELDS and value is not None}
    for name, value in taken.items():
        if not _fits(name, value):
            raise BundleError(f"the half's generation settings have a {name} that is none; distrust who made it")
    return taken


def generation_settings(half: Path, model: LanguageModel) -> GenerationConfig:
    """A model's generation config, from the half's file or, without one, what follows from the model's configuration."""
    from transformers import GenerationConfig

    file = half / "generation_config.json"
    fields = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else model.generation_config.to_dict()
    if not isinstance(fields, dict):
        raise BundleError(f"{file} cannot be read: it is not an object")
    return GenerationConfig(**harmless(fields))


def _fits(name: str, value: object) -> bool:
    if name in _SWITCHES:
        return isinstance(value, bool)
    if name in _TOKENS and isinstance(value, list):
        return len(value) <= _MOST_IDS and all(_is_count(token, least=-1) for token in value)
    if name in _NUMBERS:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return _is_count(value, least=-1 if name in _TOKENS else 0)  # -1 stands for no token in old checkpoints


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31
