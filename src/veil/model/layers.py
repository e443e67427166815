"""The modules that stand where remote layers were, and how they get there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.model.manifest import Kind
from veil.model.router import Router

F32 = NDArray[np.float32]


class RemoteLayer(nn.Module):
    """Stands for one remote module. Without a router it runs the float module (mode ``torch``)."""

    def __init__(self, name: str, kind: Kind, inner: nn.Module | None, shape: tuple[int, int]) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.inner = inner
        self.in_features, self.out_features = shape
        self.router: Router | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Input [..., in] (or token ids [...]) → output [..., out] in the input's dtype."""
        if self.router is None:
            if self.inner is None:
                raise RuntimeError(f"{self.name} has no float weights here; choose a mode other than 'torch'")
            out: torch.Tensor = self.inner(x)
            return out
        if self.kind == "embedding":
            return self.router.embedding(self.name, x)
        return self.router.linear(self.name, x).to(x.dtype)

    @property
    def weight(self) -> Any:
        """The float weight, where there is one: transformers looks at its dtype and device."""
        return None if self.inner is None else self.inner.weight

    @property
    def bias(self) -> Any:
        """The float bias, where there is one."""
        return None if self.inner is None else getattr(self.inner, "bias", None)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.name}, {self.kind}, {self.in_features} -> {self.out_features}"


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that can be remote, else None."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return None


def float_weight(module: nn.Module, kind: Kind) -> F32:
    """The weight as [out, in] float32 whatever the kind stores."""
    weight = module.weight.detach().to(device="cpu", dtype=torch.float32)  # type: ignore[operator]
    array: F32 = weight.numpy()
    return array if kind == "linear" else np.ascontiguousarray(array.T)


def float_bias(module: nn.Module) -> F32 | None:
    """The bias [out] float32, or None."""
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    array: F32 = bias.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array


def find_modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of these names; `ValueError` names one that is not there and the nearest, or is of no remote kind."""
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.pop("", None)
    found: dict[str, nn.Module] = {}
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise ValueError(f"the model has no module named {name!r}{hint}")
        if kind_of(modules[name]) is None:
            kind = type(modules[name]).__name__
            raise ValueError(f"{name!r} is a {kind}; a remote module is an nn.Linear, a Conv1D or an nn.Embedding")
        if modules[name] not in found.values():
            found[name] = modules[name]
    if not found:
        raise ValueError("no module names were given")
    return found


def replace_modules(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, RemoteLayer]:
    """Put a `RemoteLayer` wherever each module stands (a shared module stands in several places)."""
    layers = {}
    for name, module in modules.items():
        kind = kind_of(module)
        assert kind is not None
        out_features, in_features = float_weight_shape(module, kind)
        layers[name] = RemoteLayer(name, kind, module, (in_features, out_features))
        for parent in list(model.modules()):
            if isinstance(parent, RemoteLayer):
                continue
            for child_name, child in list(parent._modules.items()):
                if child is module:
                    parent._modules[child_name] = layers[name]
    return layers


def float_weight_shape(module: nn.Module, kind: Kind) -> tuple[int, int]:
    """(out, in) of a module's weight."""
    first, second = module.weight.shape  # type: ignore[misc]
    return (int(first), int(second)) if kind == "linear" else (int(second), int(first))
