"""What a GGUF file says of its model beside the weights, against what the reader made of it: nothing is dropped silently.

The reader of transformers passes over the scaling of rotary positions for most architectures; the model that comes out
answers, and is another one. Here it is put into the configuration where that can hold it, and refused where it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veil.errors import ModelSourceError

if TYPE_CHECKING:
    from veil.typing import Config

_SAME_NAME = {
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "expert_used_count": ("num_experts_per_tok",),
}
"""Keys of a file, without the architecture, and the names that configurations have for them."""

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def settle(file: Path, config: Config) -> None:
    """Bring a configuration that was read from ``file`` up to what the file says; `ModelSourceError` where it cannot be."""
    from gguf import GGUFReader  # a tenth of a second, and most starts read no such file

    reader = GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    architecture = str(said.get("general.architecture", ""))
    own = {name[len(architecture) + 1 :]: value for name, value in said.items() if name.startswith(f"{architecture}.")}
    scaling = _scaling(file, own, {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_")})
    if scaling:
        _scale(file, config.get_text_config(), scaling, float(own.get("rope.freq_base", 10000.0)))
    _compare(file, config.get_text_config(), own)


def _scaling(file: Path, own: dict[str, Any], tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, object]:
    """The scaling of rotary positions that a file asks for, as transformers names it; empty for none."""
    kind = str(own.get("rope.scaling.type", "none"))
    factor = float(own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0)))
    if kind == "none" and "rope.scale_linear" in own:
        kind = "linear"
    found: dict[str, object] = {}
    if kind in ("linear", "yarn") and factor != 1.0:
        found = {"rope_type": kind, "factor": factor}
    elif kind not in ("none", "linear", "yarn"):
        raise _refused(file, f"a scaling of rotary positions of kind {kind!r}")
    if kind == "yarn" and found:
        extra = set(own) & {f"rope.scaling.{name}" for name in ("attn_factor", "yarn_log_multiplier", "yarn_ext_factor")}
        neutral = {"rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": 1.0}
        odd = sorted(name for name in extra if own[name] != neutral.get(name))
        if odd:
            raise _refused(file, f"{odd[0]} = {own[odd[0]]}")
        if "rope.scaling.original_context_length" in own:
            found["original_max_position_embeddings"] = int(own["rope.scaling.original_context_length"])
        for name, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if f"rope.scaling.{name}" in own:
                found[ours] = float(own[f"rope.scaling.{name}"])
    if not tensors:
        return found
    if set(tensors) != {"rope_freqs.weight"} or found:
        raise _refused(file, f"factors of rotary positions ({min(tensors)})")
    factors = np.asarray(tensors["rope_freqs.weight"], dtype=np.float64).reshape(-1)
    if np.allclose(factors, 1.0):
        return {}
    return _llama3(file, factors, float(own.get("rope.freq_base", 10000.0)))


def _llama3(file: Path, factors: NDArray[np.float64], base: float) -> dict[str, object]:
    """Settings whose factors are those of a file, as Llama 3.1 has them."""
    low, high, original = (
        _LLAMA3[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    factor = float(factors.max())
    waves = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-3):
        raise _refused(file, "factors of rotary positions (rope_freqs.weight) that are not those of Llama 3")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _scale(file: Path, config: Config, scaling: dict[str, object], base: float) -> None:
    """Put a scaling into a configuration, or find that it is there."""
    known = getattr(config, "rope_parameters", None)
    if not isinstance(known, dict):
        raise _refused(file, f"a scaling of rotary positions ({scaling['rope_type']})")
    if "full_attention" in known:
        target = known["full_attention"]
    elif any(isinstance(value, dict) for value in known.values()):
        raise _refused(file, f"a scaling of rotary positions ({scaling['rope_type']})")
    else:
        target = known
    had = target.get("rope_type", "default")
    if had not in ("default", scaling["rope_type"]):
        raise _refused(file, f"a scaling of rotary positions of kind {scaling['rope_type']!r}, where the model has {had!r}")
    target.setdefault("rope_theta", base)
    target.update(scaling)
    config.rope_parameters = known


def _compare(file: Path, config: object, own: dict[str, object]) -> None:
    for key, names in _SAME_NAME.items():
        said = own.get(key)
        have = next((getattr(config, name) for name in names if hasattr(config, name)), None)
        if not isinstance(said, int | float) or not isinstance(have, int | float):
            continue
        if not math.isclose(said, have, rel_tol=1e-5):
            raise _refused(file, f"{key} = {said}, where the model has {have}")


def _refused(file: Path, what: str) -> ModelSourceError:
    return ModelSourceError(
        f"{file} asks for {what}, which the model read from it would not have; use the checkpoint that it was made from"
    )
