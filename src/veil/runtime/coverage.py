"""Whether a pass asked the remote layers that calibration saw: one that was gone around would go unnoticed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping

from torch import nn

from veil.bundle.manifest import Manifest
from veil.bundle.terms import is_one_expert
from veil.errors import ModelChanged
from veil.runtime.layers import RemoteLayer

_UNTOLD = frozenset({"attention_mask", "position_ids", "cache_position", "labels", "cache", "past_key_values"})
"""Arguments that do not decide which layers are called."""

Signature = frozenset[str]


class Coverage:
    """The layers that calibration asked, by name, and the kind of call in which it did."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, RemoteLayer],
        manifest: Manifest,
        asked: Collection[str],
        signature: Signature | None,
    ) -> None:
        self._signature = signature
        names = [[layer.name for layer in group.layers] for group in manifest.groups]
        named = model.named_modules(remove_duplicate=False)
        places = {module.name: place for place, module in named if isinstance(module, RemoteLayer)}
        self._groups = [
            (_parent(model, places[group[0]]), group)
            for group in names
            if group[0] in asked and not layers[group[0]].is_stacked and not is_one_expert(group[0])  # the router says which
        ]

    def check(self, asked: Collection[str], entered: Collection[str], signature: Callable[[], Signature | None]) -> None:
        """`ModelChanged` if a part of the model was called as in calibration, and no layer of a group in it was asked.

        ``entered`` are the names of the parts that were called; of calls with other arguments nothing is said.
        """
        for parent, group in self._groups:
            if not any(name in asked for name in group) and (not parent or parent in entered):
                if self._signature is None or signature() != self._signature:
                    return
                raise ModelChanged(
                    f"{group[0]!r} was not asked in this pass, as it was when the model was compiled: what stands in its "
                    "place is not encrypted; compile the model again, or leave that layer out of module_names"
                )


def signature_of(forward: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> Signature | None:
    """The names of the inputs that a call has; None where they cannot be told, or where layers' results are kept."""
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    named: dict[str, object] = {}
    for name, value in bound.arguments.items():
        spread = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named.update(value if spread else {name: value})
    if any(hasattr(value, "cross_attention_cache") for value in named.values()):
        return None
    told = {name for name, value in named.items() if not isinstance(value, bool | int | float | str | None)}
    return frozenset(told - _UNTOLD)


def _parent(model: nn.Module, name: str) -> str:
    """The nearest part around a layer that can be called; a list of modules cannot."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            break
    return name
