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
        self._model = model
        self._signature = signature
        names = [[layer.name for layer in group.layers] for group in manifest.groups]
        named = model.named_modules(remove_duplicate=False)
        places = {module.name: place for place, module in named if isinstance(module, RemoteLayer)}
        self._groups = [
            (_parent(model, places[group[0]]), _path(model, places[group[0]]), group)
            for group in names
            if group[0] in asked and not layers[group[0]].is_stacked and not is_one_expert(group[0])  # the router says which
        ]
        self._firsts = frozenset(group[0] for _, _, group in self._groups)

    def check(self, asked: Collection[str], entered: Collection[str], signature: Callable[[], Signature | None]) -> None:
        """`ModelChanged` if a part of the model was called as in calibration, and no layer of a group in it was asked.

        So it is if another module stands where such a part stood. ``entered`` are the names of the parts that were called;
        of calls with other arguments nothing is said.
        """
        if self._firsts.issubset(asked):
            return
        for parent, path, group in self._groups:
            if any(name in asked for name in group):
                continue
            if not parent or parent in entered or _is_replaced(self._model, path):
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


def _path(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """The modules on the way to one, each by its name in the one before."""
    found, module = [], model
    for part in name.split("."):
        module = module.get_submodule(part)
        found.append((part, module))
    return found


def _is_replaced(model: nn.Module, path: list[tuple[str, nn.Module]]) -> bool:
    """Whether another module stands somewhere on a path; one that was cut off at a list's end is only gone."""
    module = model
    for name, before in path:
        now = module._modules.get(name)
        if now is None:
            return False
        if now is not before and not isinstance(now, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            return not any(isinstance(part, RemoteLayer) for part in now.modules())
        module = now
    return False


def _parent(model: nn.Module, name: str) -> str:
    """The nearest part around a layer that can be called; a list of modules cannot."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            break
    return name
