"""The shorter way of attention for one row over a cache that grows; see `row_steps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.runtime.key_room import growing_layer, room_of
from veil.runtime.layers import is_hooked
from veil.runtime.plain_row import one_row
from veil.runtime.rehearsal import CACHES
from veil.runtime.router import Router
from veil.runtime.row_steps import Stand, close, is_plain, names_read

F32 = NDArray[np.float32]
Angles = tuple[F32, F32]
_NOTHING = np.empty(0, np.float32)
_UNHEARD = frozenset({"use_cache", "position_ids", "cache_position"})
"""Arguments that change nothing in a row's attention."""
_COMMON = frozenset(
    {
        "shape",
        "head_dim",
        "view",
        "transpose",
        "update",
        "layer_idx",
        "ALL_ATTENTION_FUNCTIONS",
        "get_interface",
        "config",
        "_attn_implementation",
        "eager_attention_forward",
        "training",
        "scaling",
        "reshape",
        "contiguous",
        "getattr",
        "sliding_window",
    }
)
_SPLIT = ("q_proj", "k_proj", "v_proj")
_OF_SPLIT = _COMMON | frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "apply_rotary_pos_emb", "attention_dropout"})
_JOINED = ("c_attn",)
_OF_JOINED = _COMMON | frozenset(
    {
        "c_attn",
        "c_proj",
        "isinstance",
        "EncoderDecoderCache",
        "is_updated",
        "get",
        "cross_attention_cache",
        "self_attention_cache",
        "hasattr",
        "ValueError",
        "q_attn",
        "layers",
        "keys",
        "values",
        "split",
        "split_size",
        "reorder_and_upcast_attn",
        "_upcast_and_reordered_attn",
        "attn_dropout",
        "p",
        "resid_dropout",
    }
)
"""All that the forward of an attention may read: one that reads anything else may do something else."""
_TRIED = (1, 37)
"""Rows before the one with which a step is tried."""


class AttentionStep:
    """Attention of one query, with rotated queries and keys or without.

    ``names`` are the layers that make queries, keys and values, one behind the other, and ``last`` reads the result.
    """

    def __init__(self, module: Any, names: Sequence[str], last: str) -> None:
        self.usable: bool | None = None
        self._module = module
        self._names, self._last = tuple(names), last
        self._others = [part for name, part in module._modules.items() if name not in (*names, last)]

    def answer(self, router: Router, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `row_steps.RowStep`."""
        module, parts = self._module, self._module._modules
        asked = self._asked(args, kwargs)
        layers = [parts[name] for name in self._names]
        if asked is None or module.training or not all(map(is_plain, layers)):
            return None
        if any(map(is_hooked, self._others)):
            return None
        if module.config._attn_implementation != "sdpa" or torch.is_autocast_enabled("cpu"):
            return None
        x, cache_name, angles = asked
        layer = growing_layer(kwargs[cache_name], module.layer_idx)
        turns = _turns(angles, module.head_dim)
        if layer is None or turns is None or layer.keys.shape[3] != module.head_dim:
            return None
        if self.usable is None:
            self.usable = self._agrees(cache_name, layer.keys.shape[1], len(turns[0]) > 0)
        if not self.usable:
            return None
        outputs = router.row_together(tuple(own.name for own in layers), x)
        if outputs is None:
            return None
        layers[0].passes.asked.update(own.name for own in layers)
        room = room_of(layer)
        found = _attended(outputs, turns, room.keys, room.values, room.length, module.scaling)
        room.grow(layer)
        return parts[self._last](torch.from_numpy(found)), None

    def _asked(self, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[torch.Tensor, str, object] | None:
        """The row, what the cache is called and the angles of a call; None for one with anything else, as a mask."""
        x, cache_name, angles = args[0] if len(args) == 1 else None, "", None
        for name, value in kwargs.items():
            if value is None or value is False or name in _UNHEARD:
                continue
            if name == "hidden_states" and not args:
                x = value
            elif name in CACHES and not cache_name:
                cache_name = name
            elif name == "position_embeddings":
                angles = value
            else:
                return None
        if not isinstance(x, torch.Tensor) or not cache_name or (angles is None) != (self._names == _JOINED):
            return None
        return x, cache_name, angles

    def _agrees(self, cache_name: str, groups: int, rotates: bool) -> bool:
        """Whether the module's own forward hands the same to its last layer, and to the cache."""
        module, size = self._module, self._module.head_dim
        width = module._modules[self._last].in_features
        keys_width, rng = groups * size, np.random.default_rng(size)
        if width % size or (width // size) % groups:
            return False
        for rows in _TRIED:
            qkv = rng.normal(size=width + 2 * keys_width).astype(np.float32)
            before = rng.normal(size=(2, 1, groups, rows, size)).astype(np.float32)
            half = rng.uniform(0, 6, size // 2).astype(np.float32)
            angle = np.concatenate([half, half]) if rotates else _NOTHING
            turns = np.cos(angle), np.sin(angle)
            room = np.concatenate([before, np.zeros((2, 1, groups, 1, size), np.float32)], axis=3)[:, 0]
            found = _attended(qkv[None, None], turns, room[0], room[1], rows, module.scaling)
            edges = [width, width + keys_width] if len(self._names) > 1 else []
            made = [torch.from_numpy(part)[None, None] for part in np.split(qkv, edges)]
            cache = _TriedCache(*map(torch.from_numpy, before))
            answers = {name: (lambda x, own=own: own) for name, own in zip(self._names, made, strict=True)}
            stand = Stand(module, **answers, **{self._last: lambda x: x})
            kwargs: dict[str, object] = {cache_name: cache, "attention_mask": None}
            if rotates:
                kwargs["position_embeddings"] = tuple(torch.from_numpy(own)[None, None] for own in turns)
            result = type(module).forward(stand, torch.zeros(1, 1, width), **kwargs)
            if not isinstance(result, tuple) or len(result) != 2 or result[1] is not None:
                return False
            if not close(found, result[0]) or not all(map(close, room, (cache.keys[0], cache.values[0]))):
                return False
        return True


class _TriedCache:
    """A cache's layer with keys and values [1, groups, rows, size], while a step is tried."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *others: object, **named: object) -> list[torch.Tensor]:
        self.keys, self.values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        return [self.keys, self.values]


def _attended(outputs: F32, turns: Angles, keys: F32, values: F32, length: int, scale: float) -> F32:
    """The result [..., heads·size] for queries, keys and values [..., outputs]."""
    from veil.kernels.cpu.local_rows import attend_row

    found = np.empty((*outputs.shape[:-1], outputs.shape[-1] - 2 * len(keys) * keys.shape[2]), np.float32)
    attend_row(outputs.reshape(-1), *turns, keys, values, length, scale, found.reshape(-1))
    return found


def _turns(angles: object, size: int) -> Angles | None:
    """cos and sin [size] of a call, empty where nothing is rotated; None for others."""
    if angles is None:
        return _NOTHING, _NOTHING
    if not isinstance(angles, tuple | list) or len(angles) != 2:
        return None
    cos, sin = map(one_row, angles)
    if cos is None or sin is None or cos.size != size or sin.size != size:
        return None
    return cos.reshape(-1), sin.reshape(-1)


def attention_step(module: nn.Module) -> AttentionStep | None:
    """The step of an attention whose forward reads nothing that the step does not know of, or None."""
    if "forward" in module.__dict__ or not {"head_dim", "scaling", "layer_idx", "config"} <= module.__dict__.keys():
        return None
    names, parts = names_read(module), module._modules.keys()
    if {*_SPLIT, "o_proj"} <= parts and names and names <= _OF_SPLIT:
        return AttentionStep(module, _SPLIT, "o_proj")
    if {*_JOINED, "c_proj"} <= parts and names and names <= _OF_JOINED:
        return AttentionStep(module, _JOINED, "c_proj")
    return None
