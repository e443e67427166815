"""A small random model of every architecture that the installed transformers has, and inputs that it takes.

Sizes are found by the names of a configuration's fields, first for all of them and then for fewer, until a model can be made
that is small and answers an input.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 99
MOST_PARAMETERS = 30_000_000
PATIENCE_S = 15.0
"""Seconds of processor time after which no further sizes are tried."""

TASKS = (
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MULTIMODAL_LM",
    "MASKED_LM",
    "CAUSAL_LM",
    "TEXT_TO_WAVEFORM",
    "OBJECT_DETECTION",
    "IMAGE_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "PRETRAINING",
)
"""Of several classes for an architecture the first of these tasks is tried, then the model without a head."""

_LAYERS = r"(?!.*(feat_extract|conv|adapter))((num_)?(\w+_)?(hidden_)?(layers|blocks)|n_layers?|depth|num_hidden_groups)"
_WIDTH = r"hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|width"
_HEADS = r"(num_|n_)?(\w+_)?(attention_)?(heads?)|nhead"
_KEY_HEADS = r"(num_)?(\w+_)?key_value_heads|n_kv_heads|num_kv_heads"
_HEAD_WIDTH = r"\w*(head_dim|head_size|d_kv|d_head|kv_channels)"

_TEXT = (
    (r"(\w+_)?vocab_size|n_vocab|vocab_size_\w+", VOCABULARY),
    (_LAYERS, 2),
    (_WIDTH, 32),
    (_KEY_HEADS, 2),
    (r"mamba_n_heads|mamba_num_heads|mamba_d_head|mamba_head_dim", 8),
    (_HEADS, 4),
    (r"initializer_range|init_std", 0.2),
)
_WIDTHS = (
    (_HEAD_WIDTH, 8),
    (r"\w*(intermediate_size|ffn_dim|d_ff|n_inner|dim_feedforward|mlp_dim|ffn_hidden_size|intermediate_dim)", 48),
    (r"\w*(hidden_size|hidden_dim|embed_dim|projection_dim|output_dim|embedding_dim|d_model)|dim|emb_dim", 32),
    (r"\w*lora_rank", 8),
    (r"rotary_dim|prediction_length", 4),
    (r"\w*(num_|n_)(local_|routed_|\w+_)?experts|moe_num_experts|n_routed_experts", 4),
    (r"\w*(num_experts_per_tok(en)?|top_?k|topk|experts_top_k)", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|first_k_dense_replace", 1),
    (r"sliding_window", 4),
    (r"state_size|ssm_state_size|mamba_d_state", 8),
)
_PLACES = (
    (r"max_position_embeddings|n_positions|max_sequence_length|max_seq_len|n_ctx", 128),
    (r"max_source_positions|max_target_positions", 64),
    (r"image_size|img_size|input_size", 32),
    (r"patch_size", 8),
    (r"num_queries", 6),
)
_ALL = _TEXT + _WIDTHS + _PLACES
_WIDE = ((_WIDTH, 256), (_KEY_HEADS, 2), (_HEAD_WIDTH, 128), (r"num_attention_heads|num_heads", 2))
LEVELS = (
    _ALL,
    ((_KEY_HEADS, 4), *_ALL),
    ((_LAYERS, 4), *_ALL),
    ((_LAYERS, 8), *_ALL),
    (*_WIDE, *_ALL),
    (*_WIDE, *_TEXT),
    _TEXT + _WIDTHS,
    _TEXT + _PLACES,
    _TEXT,
    (*_WIDTHS[:3], *_TEXT[:2]),
    ((_LAYERS, 2),),
    (),
)
"""Which sizes are made small: all, and others where a model does not come to be. A name's first pattern counts."""

_UNSET = {"head_dim": 8, "vocab_size": VOCABULARY, "n_routed_experts": 4, "prediction_length": 4, "num_local_experts": 4}
"""Fields that are made even where their default is None, once a model did not come to be without."""

_THREE_PLACES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_HIERA = {
    "image_size": [64, 64],
    "hidden_size": 16,
    "embed_dim_per_stage": [16, 32, 64, 128],
    "blocks_per_stage": [1, 1, 2, 1],
}
_HIERA |= {"num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [3]}
_HIERA |= {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("glm4v", "glm4v_text", "glm46v", "glmga", "glm_ocr", "glm_ocr_text"), _THREE_PLACES),
    **dict.fromkeys(("glm_image", "glm_image_text", "colqwen2"), _THREE_PLACES),
    **dict.fromkeys(("sam2_vision_model", "sam2_hiera_det_model"), _HIERA),
    "bailing_hybrid": {"n_group": 1, "num_group": 1, "topk_group": 1, "num_hidden_layers": 8},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "glm5_next": {"num_key_value_heads": 4, "index_topk": 16},
    "glm5_next_text": {"num_key_value_heads": 4, "index_topk": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "kimi_linear": {"num_key_value_heads": 4, "num_hidden_layers": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16},
}
"""Fields of architectures that no general size fits, at any depth of their configuration."""

_TOKEN = re.compile(r"\w*(token_id|token_index|token_ids|_id_index)|\w+_token|boi_id|eoi_id")
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2}


def architectures() -> dict[str, tuple[str, ...]]:
    """Class names for each of transformers' model types, in the order in which they are tried."""
    found: dict[str, list[str]] = {}
    tasks = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in TASKS]
    every = sorted(name for name in dir(modeling_auto) if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES"))
    for mapping in (*tasks, "MODEL_MAPPING_NAMES", *every):
        for kind, names in getattr(modeling_auto, mapping, {}).items():
            for name in (names,) if isinstance(names, str) else names:
                if name not in found.setdefault(kind, []):
                    found[kind].append(name)
    return {kind: tuple(names) for kind, names in found.items()}


class NotBuilt(Exception):
    """No small model of an architecture could be made here."""


def small_model(kind: str, names: tuple[str, ...]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model of an architecture, random but fixed, and inputs of its forward pass.

    `NotBuilt` says why there is none.
    """
    import transformers

    reasons: list[str] = []
    begun: float | None = None
    tries = [(level, False) for level in LEVELS] + [(LEVELS[0], True), (LEVELS[4], True)]
    for name in names[:4]:
        model_class = getattr(transformers, name, None)
        try:
            if not hasattr(model_class, "_from_config"):
                continue
        except ImportError as error:  # a class that stands for one whose package is not installed
            reasons.append(f"{name}: {error}")
            continue
        begun = time.process_time() if begun is None else begun  # loading the class was work of another kind
        for level, unset in tries:
            if time.process_time() - begun > PATIENCE_S:
                break
            try:
                model = _made(model_class, small_config(CONFIG_MAPPING[kind](), level, _OWN.get(kind, {}), unset=unset))
                return model, _inputs_taken(model)
            except Exception as error:  # a configuration that does not fit shows in any way
                reasons.append(f"{name}: {type(error).__name__}: {error}")
    raise NotBuilt(" ".join(reasons[0].split())[:200] if reasons else "no class that can be made from a configuration")


def small_config(config: Any, sizes: tuple[tuple[str, Any], ...], own: dict[str, Any], *, unset: bool = False) -> Any:
    """A configuration like this one whose fields of these names have these sizes, at every depth."""
    changes: dict[str, Any] = {}
    free = iter(range(VOCABULARY - 2, 8, -1))
    tokens = any(value == VOCABULARY for _, value in sizes)
    parts = {name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None}
    for name in parts:
        changes[name] = small_config(getattr(config, name), sizes, own, unset=unset)
    for name, value in config.to_dict().items():
        if name in parts or name in ("model_type", "transformers_version", "architectures"):
            continue
        size = next((size for pattern, size in sizes if re.fullmatch(pattern, name)), None)
        if tokens and name in _SPECIAL and value is not None:
            changes[name] = _SPECIAL[name]
        elif tokens and _TOKEN.fullmatch(name) and isinstance(value, int) and value >= VOCABULARY - 1:
            changes[name] = next(free)
        elif size is not None and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            changes[name] = min(value, size) if size > 1 else size
        elif size is not None and size == 2 and isinstance(value, list) and len(value) > 2 and "layer" in name:
            changes[name] = value[:2]
        elif unset and value is None and name in _UNSET:
            changes[name] = _UNSET[name]
    changes |= {name: value for name, value in own.items() if name in config.to_dict()}
    return type(config)(**changes)


def _made(model_class: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class._from_config(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise NotBuilt(f"{parameters:,} parameters")
    torch.manual_seed(0)
    model: nn.Module = model_class._from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or (parameter.ndim == 1 and "norm" in name.lower()):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _inputs_taken(model: nn.Module) -> dict[str, torch.Tensor]:
    """The first inputs of some that the model answers, twice alike."""
    last: Exception | None = None
    for inputs in _inputs(model):
        try:
            with torch.no_grad():
                model(**inputs)
            return inputs
        except Exception as error:
            last = last or error
    raise last or NotBuilt("its inputs are of kinds that are not known here")


def _inputs(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    main = [name for name in ("input_ids", model.main_input_name) if name in parameters]
    decoder = ["decoder_input_ids"] if "decoder_input_ids" in parameters else []
    extra = [name for name in ("pixel_values", "bbox", "input_values") if name in parameters]
    for wanted in ([*main[:1], *decoder], main[:1], [*main, *decoder], [*main, *extra, *decoder], main[1:]):
        names = list(dict.fromkeys([*needed, *wanted]))
        if not names or any(name not in _MAKERS for name in names):
            continue
        for variant in range(3):
            yield {name: _MAKERS[name](model.config, variant) for name in names}


def _field(config: Any, *names: str, default: int) -> int:
    """The first of these fields, here or in a part."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for name in names:
        for part in parts:
            value = getattr(part, name, None)
            value = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return default


def _ids(config: Any, variant: int, shift: int = 0) -> torch.Tensor:
    length = (7, 16, 64)[variant]
    return ((torch.arange(length) * 7 + 5 + shift) % 60 + 3)[None]


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _pixels(config: Any, variant: int) -> torch.Tensor:
    size, channels = _field(config, "image_size", "img_size", default=64), _field(config, "num_channels", default=3)
    frames = _field(config, "num_frames", default=2)
    shapes = ((1, channels, size, size), (1, frames, channels, size, size), (1, channels, 224, 224))
    return _noise(*shapes[variant])


def _features(config: Any, variant: int) -> torch.Tensor:
    bins = _field(config, "num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", default=80)
    frames = 2 * _field(config, "max_source_positions", default=64)
    return _noise(*((1, bins, frames), (1, 64, bins), (1, 64, 160))[variant])


_MAKERS: dict[str, Any] = {
    "input_ids": _ids,
    "decoder_input_ids": lambda config, variant: _ids(config, variant, 11),
    "attention_mask": lambda config, variant: torch.ones_like(_ids(config, variant)),
    "bbox": lambda config, variant: torch.zeros(1, (7, 16, 64)[variant], 4, dtype=torch.long),
    "pixel_values": _pixels,
    "pixel_values_videos": _pixels,
    "input_values": lambda config, variant: _noise(*((1, 4000), (1, 1, 4000), (1, 1024, 128))[variant]),
    "input_features": _features,
    "hidden_states": lambda config, variant: _noise(
        16, 3 * (2, 1, 2)[variant] * _field(config, "patch_size", default=14) ** 2
    ),
    "grid_thw": lambda config, variant: torch.tensor([[1, 4, 4]]),
}
