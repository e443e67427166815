"""The modules that stand where remote layers were, and how they get there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.bundle.manifest import Kind
from veil.errors import RemoteWeightError
from veil.runtime.concrete import ModelWide
from veil.runtime.router import Router
from veil.runtime.weights import RemoteWeight

F32 = NDArray[np.float32]


class RemoteLayer(nn.Module):
    """Stands for one remote module. Without a router it runs the float module (mode ``torch``)."""

    fhe_local_mode = ModelWide()

    def __init__(
        self,
        name: str,
        kind: Kind,
        inner: nn.Module | None,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which makes a weight
        self.name = name
        self.kind = kind
        self._held = [inner]
        self.in_features, self.out_features = shape
        self.dtype = dtype
        self.router: Router | None = None
        self.weight_read = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Input [..., in] (or token ids [...]) → output [..., out] in the input's dtype (the weight's for token ids)."""
        if self.router is None:
            if self.inner is None:
                raise RuntimeError(f"{self.name} has no float weights here; choose a mode other than 'torch'")
            out: torch.Tensor = self.inner(x)
            return out
        if self.kind == "embedding":
            return self.router.embedding(self.name, x).to(self.dtype)
        out = self.router.linear(self.name, x)
        return out if out.dtype is x.dtype else out.to(x.dtype)

    @property
    def inner(self) -> nn.Module | None:
        """The float module, where it is here. It is no child: adapters and optimizers do not find what does not train."""
        return self._held[0]

    @inner.setter
    def inner(self, module: None) -> None:
        self._held[0] = module

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if recurse and self.inner is not None:
            self.inner._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Any:
        """What stands for the weight: transformers looks at its dtype and device, adapters at its shape."""
        self.weight_read = True
        if self.inner is None:
            return RemoteWeight.absent(self.name, (self.out_features, self.in_features), self.dtype)
        return RemoteWeight.of(self.name, self.inner.weight)  # type: ignore[arg-type]

    @weight.setter
    def weight(self, value: Any) -> None:
        if not isinstance(value, RemoteWeight):  # peft assigns what it read when it takes an adapter off
            RemoteWeight.absent(self.name, (1, 1), self.dtype).data = value  # which refuses

    @property
    def bias(self) -> Any:
        """The float bias, where there is one."""
        return None if self.inner is None else getattr(self.inner, "bias", None)

    @bias.setter
    def bias(self, value: Any) -> None:
        if value is not self.bias:
            raise RemoteWeightError(f"the bias of {self.name} is part of what was compiled; change it before compiling")

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.name}, {self.kind}, {self.in_features} -> {self.out_features}"


class RemoteLinear(RemoteLayer, nn.Linear):
    """A remote layer that counts as ``nn.Linear``, so that peft and others attach adapters to it."""

    @property
    def weight(self) -> Any:
        """See `RemoteLayer.weight`; [out, in] whatever the float module stores."""
        weight = RemoteLayer.weight.fget(self)  # type: ignore[attr-defined]
        return RemoteWeight.of(self.name, weight.T) if self.kind == "conv1d" and self.inner is not None else weight

    @weight.setter
    def weight(self, value: Any) -> None:
        RemoteLayer.weight.fset(self, value)  # type: ignore[attr-defined]


def remote_layer(
    name: str, kind: Kind, inner: nn.Module | None, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> RemoteLayer:
    """What stands for a module of this kind; ``shape`` is (in, out)."""
    return (RemoteLayer if kind == "embedding" else RemoteLinear)(name, kind, inner, shape, dtype)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that can be remote, else None."""
    if isinstance(module, RemoteLayer):
        return None
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return None


def float_weight(module: nn.Module, kind: Kind) -> F32:
    """The weight as [out, in] float32 whatever the kind stores; of an embedding, the table that it answers with.

    Raises `ValueError` for a subclass whose output is not its weight times the input plus its bias.
    """
    with torch.no_grad():
        if kind == "embedding":
            table = module(torch.arange(module.weight.shape[0], device=module.weight.device))  # type: ignore[index, arg-type]
        else:
            table = module.weight.detach()  # type: ignore[operator]
            _check_linear(module, table if kind == "linear" else table.T)
    array: F32 = table.to(device="cpu", dtype=torch.float32).numpy()
    return array if kind == "linear" else np.ascontiguousarray(array.T)


def _check_linear(module: nn.Module, weight: torch.Tensor) -> None:
    """Try a subclass with a ``forward`` of its own on one row."""
    if type(module).forward is nn.Linear.forward:
        return
    row = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
    bias = getattr(module, "bias", None)
    expected = (row @ weight.T if bias is None else row @ weight.T + bias).float()
    if not torch.allclose(module(row).float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ValueError(f"a {type(module).__name__} computes more than a linear layer; leave it out of module_names")


def float_bias(module: nn.Module) -> F32 | None:
    """The bias [out] float32, or None."""
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    array: F32 = bias.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array


def float_weight_shape(module: nn.Module, kind: Kind) -> tuple[int, int]:
    """(out, in) of a module's weight."""
    first, second = module.weight.shape  # type: ignore[misc]
    return (int(first), int(second)) if kind == "linear" else (int(second), int(first))
