"""Passes with zeros, so that what a pass asks is known from its shape before anything of its content is looked at."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from veil.runtime.plan import Shape

_IDS = ("input_ids", "inputs_embeds")
_DECODER_IDS = ("decoder_input_ids", "decoder_inputs_embeds")
CACHES = ("past_key_values", "cache", "cache_params", "past_key_value")
_KEEPS = "logits_to_keep"
_FOLLOWING = frozenset(
    {"attention_mask", "position_ids", "cache_position", "token_type_ids", "decoder_attention_mask", "labels"}
    | {"decoder_position_ids", "cross_attention_mask", "num_items_in_batch"}
)
_SIZES = frozenset({"image_sizes", "grid_thw", "image_grid_thw", "video_grid_thw", "spatial_shapes", "mm_token_type_ids"})
"""How large pictures are, and which tokens are theirs: what a pass asks follows from that, and not from what they show."""

_PICTURED = ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id")

_ROWS, _ENCODER_ROWS, _KEPT, _PAST = 4, 5, 2, 6
"""Rows of a rehearsed sequence: with them every rule of `veil.runtime.plan` gives another number."""


@runtime_checkable
class Outputs(Protocol):
    """What an encoder gave: its hidden states [B, S, width] first."""

    def __getitem__(self, place: int, /) -> torch.Tensor:
        """One of the outputs."""


@dataclass(frozen=True, eq=False)
class Arguments:
    """A pass's arguments by name, and its shape if it is one of token sequences."""

    given: dict[str, object]
    ids: str | None
    shape: Shape | None
    cached: bool = False

    @property
    def cache_name(self) -> str:
        """What the pass calls its state."""
        return next((name for name in CACHES if name in self.given), CACHES[0])

    @property
    def signature(self) -> tuple[object, ...]:
        """What has to be the same for a plan by numbers to be used again."""
        tensors = {n: v for n, v in self.given.items() if isinstance(v, torch.Tensor)}
        sizes = tuple((n, tuple(v.flatten().tolist())) for n, v in sorted(tensors.items()) if n in _SIZES and v.ndim < 3)
        return (*((n, tuple(v.shape)) for n, v in sorted(tensors.items())), *sizes)

    @property
    def trains(self) -> tuple[str, ...]:
        """The arguments that gradients are wanted of."""
        return tuple(sorted(n for n, v in self.given.items() if isinstance(v, torch.Tensor) and v.requires_grad))

    @property
    def device(self) -> torch.device:
        """Where the pass is computed."""
        tensors = (value for value in self.given.values() if isinstance(value, torch.Tensor))
        first = next(tensors, None)
        return torch.device("cpu") if first is None else first.device

    def small(self) -> tuple[dict[str, object], Shape] | None:
        """Arguments for a rehearsal with a few rows, and their shape; None for passes that are no token sequences."""
        if self.shape is None:
            return None
        length = 1 if self.shape.length == 1 else _ROWS
        kept, past = min(self.shape.kept, _KEPT), _PAST if self.cached else 0
        return self.sized(Shape(self.shape.sequences, length, _ENCODER_ROWS if self.shape.encoder else 0, kept, past))

    def before(self, shape: Shape) -> dict[str, object]:
        """Arguments for a rehearsal of the pass that leaves what this shape has in its cache."""
        return self.sized(replace(shape, length=max(shape.past, 1), past=0))[0]

    def sized(self, shape: Shape) -> tuple[dict[str, object], Shape]:
        """Arguments for a rehearsal of this shape, all zeros."""
        assert self.ids is not None
        made: dict[str, object] = {}
        for name, value in self.given.items():
            if name == self.ids and isinstance(value, torch.Tensor):
                made[name] = value.new_zeros((shape.sequences, shape.length, *value.shape[2:]))
            elif name in _IDS and self.ids in _DECODER_IDS and isinstance(value, torch.Tensor):
                made[name] = value.new_zeros((shape.sequences, shape.encoder, *value.shape[2:]))
            elif name == "encoder_outputs" and isinstance(value, Outputs):
                hidden = value[0]
                made[name] = _encoded(hidden.new_zeros((shape.sequences, shape.encoder, *hidden.shape[2:])))
            elif name == _KEEPS:
                made[name] = shape.kept
            elif name not in _FOLLOWING and name not in CACHES:
                made[name] = value
        return made, shape

    def whole(self, pictured: frozenset[int] = frozenset()) -> dict[str, object]:
        """The arguments with zeros in place of tensors' values, ones in masks; states are copies.

        Sizes of pictures stay, and so do the tokens ``pictured``, in whose places they go.
        """
        made = {name: value if name in _SIZES else _empty(name, value) for name, value in self.given.items()}
        ids = self.given.get(_IDS[0])
        if pictured and isinstance(ids, torch.Tensor):
            places = torch.isin(ids, torch.tensor(sorted(pictured), device=ids.device))
            made[_IDS[0]] = torch.where(places, ids, torch.zeros_like(ids))
        return made


def pictured_tokens(config: object) -> frozenset[int]:
    """The tokens of a model's vocabulary in whose places pictures, videos and sounds go."""
    found = (getattr(config, name, None) for name in _PICTURED)
    return frozenset(token for token in found if isinstance(token, int) and token > 0)


def bound(signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Arguments:
    """The arguments of a call by name."""
    try:
        taken = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself will say what is wrong with them
        return Arguments({f"{place}": value for place, value in enumerate(args)} | dict(kwargs), None, None)
    given: dict[str, Any] = dict(taken.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            given |= {f"{name}.{place}": value for place, value in enumerate(given.pop(name, ()))}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and (value.is_nested or value.is_quantized or value.is_mkldnn):
            kind = "nested" if value.is_nested else "quantized" if value.is_quantized else "of mkldnn's layout"
            raise TypeError(f"the input {name} is {kind}, of which no zeros can be made; give it as a dense float tensor")
    return Arguments(given, *_shape(given))


def _shape(given: Mapping[str, object]) -> tuple[str | None, Shape | None, bool]:
    others = {n for n, v in given.items() if isinstance(v, torch.Tensor)} - _FOLLOWING - {*_IDS, *_DECODER_IDS}
    unknown = [n for n, v in given.items() if not isinstance(v, torch.Tensor) and not _is_plain(v)]
    if others or {*unknown} - {*CACHES, "encoder_outputs"}:
        return None, None, False
    ids = next((name for name in (*_DECODER_IDS, *_IDS) if name in given), None)
    tokens = None if ids is None else given[ids]
    if ids is None or not isinstance(tokens, torch.Tensor) or tokens.ndim != (3 if ids.endswith("embeds") else 2):
        return None, None, False
    encoder = 0
    if ids in _DECODER_IDS:
        outputs = given.get("encoder_outputs")
        hidden = outputs[0] if isinstance(outputs, Outputs) else next((given[n] for n in _IDS if n in given), None)
        if not isinstance(hidden, torch.Tensor) or hidden.ndim < 2:
            return None, None, False
        encoder = int(hidden.shape[1])
    sequences, length = tokens.shape[:2]
    kept = given.get(_KEEPS, 0)
    if not isinstance(kept, int) or kept < 0:
        return None, None, False
    caches = [given.get(name) for name in CACHES]
    past = max(map(_rows_in, caches))
    return ids, Shape(int(sequences), int(length), encoder, kept, past), past > 0 or any(map(_is_filled, caches))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _rows_in(cache: object) -> int:
    """The rows that a state has of earlier passes; 0 where it does not say."""
    length = getattr(cache, "get_seq_length", None)
    try:
        return int(length()) if callable(length) else 0
    except Exception:  # a state without keys
        return 0


def _is_filled(cache: object) -> bool:
    """Whether a state has something of earlier passes."""
    length = getattr(cache, "get_seq_length", None)
    if callable(length):
        try:
            return bool(length() > 0)
        except Exception:  # a state without keys
            return True
    return cache is not None


def _encoded(hidden: torch.Tensor) -> object:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=hidden)


def _empty(name: str, value: object) -> object:
    if isinstance(value, torch.Tensor):
        return torch.ones_like(value) if "mask" in name else torch.zeros_like(value)
    if _is_plain(value):
        return value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_empty(name, part) for part in value)
    if isinstance(value, dict) and type(value) is dict:
        return {key: _empty(key if isinstance(key, str) else name, part) for key, part in value.items()}
    return copy.deepcopy(value)
