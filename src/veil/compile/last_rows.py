"""Which layers matter for a sequence's last row alone, where only its logits are asked for: found by trying.

Of the last block of a decoder every row's keys and values are read later, but nothing reads its queries, its attention's
output and its MLP except at the row that the next token is chosen by. Those rows need not be sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from veil.runtime.layers import RemoteLayer

_MOST_TRIED = 12
_TOKENS = 8


def last_row_layers(model: nn.Module, layers: dict[str, RemoteLayer], called: Sequence[str], ids: object) -> set[str]:
    """Names of layers whose outputs, but for the last row's, change neither the last row's logits nor the cache.

    ``called`` are the layers in calling order, ``ids`` token ids [1, T] that a float pass is tried on. None for a model
    that cannot be asked for the last logits, or whose cache is not of keys and values alone.
    """
    takes = inspect.signature(model.forward).parameters
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.shape[1] <= 2 or ids.is_floating_point():
        return set()
    if "logits_to_keep" not in takes or "use_cache" not in takes:
        return set()
    sample = ids[:1, :_TOKENS]
    expected = _pass(model, sample)
    if expected is None:
        return set()
    chosen: set[str] = set()
    failed: str | None = None
    head = called[-1] if called else None
    for name in list(reversed(called))[:_MOST_TRIED]:
        if name == head and layers[name].out_features == expected[0].shape[-1]:
            continue
        if _same(expected, _without(model, [layers[own] for own in (*chosen, name)], sample)):
            chosen.add(name)
        elif failed is not None and name.rpartition(".")[0] != failed.rpartition(".")[0]:
            break
        else:
            failed = name
    return chosen


def _without(model: nn.Module, layers: list[RemoteLayer], ids: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """A pass in which the layers' outputs are zero but in the last row."""

    def blank(module: nn.Module, args: tuple[object, ...], out: torch.Tensor) -> torch.Tensor:
        if out.ndim != 3 or out.shape[1] != ids.shape[1]:
            raise ValueError("a layer that does not see the sequence")
        kept = torch.zeros_like(out)
        kept[:, -1] = out[:, -1]
        return kept

    handles = [layer.register_forward_hook(blank) for layer in layers]
    try:
        return _pass(model, ids)
    finally:
        for handle in handles:
            handle.remove()


def _pass(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """Logits of the last row, then keys and values; None where there is something else, or the pass fails."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    try:
        with torch.no_grad():
            result = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    except Exception:  # a model that is not called like this is not asked again
        return None
    cache = next((result[name] for name in ("cache", "past_key_values") if name in result), None)
    if not isinstance(cache, DynamicCache) or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    logits = getattr(result, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[1] != 1:
        return None
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return (logits, *parts) if all(isinstance(part, torch.Tensor) for part in parts) else None


def _same(expected: tuple[torch.Tensor, ...], got: tuple[torch.Tensor, ...] | None) -> bool:
    return (
        got is not None
        and len(got) == len(expected)
        and all(one.shape == other.shape for one, other in zip(expected, got, strict=True))
        and torch.allclose(expected[0], got[0], rtol=1e-4, atol=1e-5 * float(expected[0].abs().max()))
        and all(torch.equal(one, other) for one, other in zip(expected[1:], got[1:], strict=True))
    )
