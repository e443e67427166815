"""The modules that stand where remote layers were, and how they get there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.bundle.manifest import Kind
from veil.errors import RemoteWeightError
from veil.runtime.concrete import ModelWide
from veil.runtime.linearity import check_linear, check_table
from veil.runtime.router import Router
from veil.runtime.tracers import refuse_graph, refuse_torchscript, refuse_tracers
from veil.runtime.weights import RemoteWeight, refuse_change

if TYPE_CHECKING:
    from veil.runtime.passes import Passes

F32 = NDArray[np.float32]
Observer = Callable[[torch.Tensor, torch.Tensor], None]
"""Told of what a layer read and gave, between the hooks of the float module."""

COPY_REMEDY = "a model with remote layers cannot be copied or pickled; save it with HybridFHEModel.save, or copy it before"
_SIZES = {"embedding": ("num_embeddings", "embedding_dim"), "conv1d": ("nx", "nf")}
"""Names of (in, out) that models read where nn.Linear has in_features and out_features."""


class RemoteLayer(nn.Module):
    """Stands for one remote module, under its parameters' names; in mode ``torch`` it runs the float module.

    Hooks that were put on the float module run in every mode. It cannot be copied or pickled: `TypeError` says what can.
    """

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
        self.in_features, self.out_features = shape
        self._width = torch.Size(shape[:1])
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.passes: Passes | None = None
        self.observers: list[Observer] = []
        self.withholds = False
        """Whether the float weight cannot be read in mode ``torch`` either."""
        self.is_stacked = False
        """Whether the weight is a part of another module's parameter, which keeps it in files."""
        self._held: list[nn.Module] = []
        if inner is not None:
            self._hold(inner)

    def _hold(self, inner: nn.Module) -> None:
        self._held = [inner]  # in a list, so that it is no module in the model's tree: its parameters are this one's
        self._local: Callable[[torch.Tensor], torch.Tensor] = inner.forward
        for part in ("_parameters", "_buffers", "_modules"):
            self.__dict__[part] = inner.__dict__[part]
        weight = inner.weight
        assert isinstance(weight, torch.Tensor)
        self.device = torch.device("cpu") if weight.is_meta else weight.device  # a meta tensor is filled here, if anywhere

    @property
    def inner(self) -> nn.Module | None:
        """The float module; None where there are no float weights. Setting it to None drops them."""
        return self._held[0] if self._held else None

    @inner.setter
    def inner(self, nothing: None) -> None:
        self._held = []
        self.__dict__.pop("_local", None)
        for part in ("_parameters", "_buffers", "_modules"):
            self.__dict__[part] = {}

    @property
    def router(self) -> Router | None:
        """What answers in the mode of this call; None in mode ``torch``."""
        return None if self.passes is None else self.passes.router

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Input [..., in] (or token ids [...]) → output [..., out] in the input's dtype (the weight's for token ids)."""
        x = args[0] if len(args) == 1 and not kwargs else self._input(args, kwargs)
        held = self._held
        inner = held[0] if held else None
        if inner is None or not is_hooked(inner):
            return self._answer(x)
        if self.router is None and not self.observers:
            answer: torch.Tensor = inner(x)
            return answer
        inner.__dict__["forward"] = self._answer  # the float module's own call, so that its hooks run around this answer
        try:
            answer = inner(x)
            return answer
        finally:
            if self._local == type(inner).forward.__get__(inner):
                del inner.__dict__["forward"]
            else:
                inner.__dict__["forward"] = self._local

    def _input(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        given = (*args, *kwargs.values())
        if len(given) != 1 or set(kwargs) - {"input", "x"}:
            raise TypeError(f"{self.name} takes one tensor, as 'input' or without a name, not {len(given)} arguments")
        return given[0]

    def _answer(self, x: object) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            if isinstance(x, torch.fx.Proxy):
                refuse_graph()
            raise TypeError(f"{self.name} was given a {type(x).__name__}, expected a torch.Tensor")
        passes = self.passes
        router, inside = (None, False) if passes is None else passes.here
        if inside and router is not None and passes is not None:
            row = router.row(self.name, x)
            if row is not None:
                passes.asked.add(self.name)
                for observe in self.observers:
                    observe(x, row)
                return row
        if not inside:
            refuse_tracers()
        if router is None or passes is None:
            if self.inner is None:
                raise RuntimeError(f"{self.name} has no float weights here; choose a mode other than 'torch'")
            out: torch.Tensor = self._local(x)
        else:
            self._check(x)
            if inside:
                passes.asked.add(self.name)
                out = self._remote(router, x)
            else:
                with passes.opened((self.name,)):
                    passes.asked.add(self.name)
                    out = passes.alone(self.name, partial(self._remote, router), x)
        for observe in self.observers:
            observe(x, out)
        return out

    def _check(self, x: torch.Tensor) -> None:
        """What torch would refuse is refused: another width, or another kind of numbers; and what has no values to send."""
        if x.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise TypeError(
                f"{self.name} was given a tensor without values (of torch.func, or on 'meta'); call the model as it is"
            )
        if has_dispatch(x):
            raise TypeError(
                f"{self.name} was given a {type(x).__name__}, expected a tensor of torch's own kind, with values"
            )
        if x.is_nested or x.layout is not torch.strided:
            kind, instead = ("nested", "pad its rows") if x.is_nested else (str(x.layout), "give its to_dense()")
            raise TypeError(f"{self.name} was given a tensor that is {kind.removeprefix('torch.')}; {instead}")
        if self.kind == "embedding":
            if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise TypeError(f"{self.name} was given {x.dtype}, expected token ids")
        elif not x.is_floating_point():
            raise TypeError(f"{self.name} was given {x.dtype}, expected floating-point activations")
        elif x.shape[-1:] != self._width:
            raise TypeError(f"{self.name} was given a tensor {tuple(x.shape)}, expected [..., {self.in_features}]")

    def _remote(self, router: Router, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "embedding":
            return router.embedding(self.name, x).to(self.dtype)
        out = router.linear(self.name, x)
        return out if out.dtype is x.dtype else out.to(x.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The float weight in mode ``torch``; else what stands for it: see `RemoteWeight`. Models look at its dtype and
        device.
        """
        inner = self.inner
        own = None if inner is None else inner.weight
        assert own is None or isinstance(own, torch.Tensor)
        if own is not None and self.router is None and not self.withholds and self.kind != "conv1d":
            return own
        shape = (self.in_features, self.out_features) if self.kind == "embedding" else (self.out_features, self.in_features)
        values = None if own is None else own.detach()
        if values is not None and self.kind == "conv1d":
            values = values.T  # as adapters of a linear layer expect it; what is assigned to a view's data would be lost
        return RemoteWeight(self.name, shape, self.dtype, self.device, values)

    @property
    def bias(self) -> torch.Tensor | None:
        """The float bias [out], where there is one."""
        return None if self.inner is None else getattr(self.inner, "bias", None)

    def __setattr__(self, name: str, value: torch.Tensor | nn.Module) -> None:
        """Weights are replaced in mode ``torch`` only, where that is noticed before the next pass in another."""
        if name not in ("weight", "bias") or "_held" not in self.__dict__:
            super().__setattr__(name, value)
        elif name == "bias" and value is self.bias:
            return
        elif isinstance(value, RemoteWeight):  # peft assigns what it read when it takes an adapter off
            if value.layer != self.name:
                refuse_change(self.name)
        elif self.inner is not None and self.router is None and self.kind != "conv1d":
            setattr(self.inner, name, value)
        elif name == "weight":
            refuse_change(self.name)
        else:
            raise RemoteWeightError(f"the bias of {self.name} is part of what was compiled; change it before compiling")

    def __getattr__(self, name: str) -> Any:
        """What else a model reads of the float module: its sizes under other names, and settings of subclasses."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            held = self.__dict__.get("_held")
            if held and not name.startswith("__"):
                return getattr(held[0], name)
            if name in _SIZES.get(self.__dict__.get("kind", ""), ()):
                return self.in_features if name == _SIZES[self.kind][0] else self.out_features
            raise

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> RemoteLayer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if not moved.is_meta:
            self.dtype, self.device = moved.dtype, moved.device
        return self

    def _save_to_state_dict(self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
        """The float module's; where there is none, a weight that no file can hold, since a file without it is no model."""
        if self.inner is not None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        elif not self.is_stacked:
            destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, *args: object) -> None:
        if not self.is_stacked:
            super()._load_from_state_dict(*args)

    def __deepcopy__(self, memo: object) -> RemoteLayer:
        raise TypeError(COPY_REMEDY)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """It is part of sessions and keys, which are not copied."""
        raise TypeError(COPY_REMEDY)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.name}, {self.kind}, {self.in_features} -> {self.out_features}"

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script calls first."""
        refuse_torchscript()


class RemoteLinear(RemoteLayer, nn.Linear):  # type: ignore[override, misc]
    """A remote layer that counts as ``nn.Linear``, so that peft and others attach adapters to it; its weight is [out,
    in].
    """


def is_hooked(module: nn.Module) -> bool:
    """Whether a hook of the module's own takes part in a call of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_dispatch(x: torch.Tensor) -> bool:
    """Whether it is of a kind that computes in a way of its own, as fake, quantized and distributed tensors do."""
    return type(x) is not torch.Tensor and type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


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
    if hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__):
        return "conv1d"
    return None


def float_weight(module: nn.Module, kind: Kind) -> F32:
    """The weight as [out, in] float32 whatever the kind stores; of an embedding, the table that it answers with.

    Raises `ValueError` for a subclass whose output is not its weight times the input plus its bias.
    """
    with torch.no_grad():
        if kind == "embedding":
            ids = torch.arange(module.weight.shape[0], device=module.weight.device)  # type: ignore[index, arg-type]
            table = module.forward(ids)
            check_table(module, ids, table)
        else:
            table = module.weight.detach()  # type: ignore[operator]
            check_linear(module, table if kind == "linear" else table.T)
    array: F32 = table.to(device="cpu", dtype=torch.float32).numpy()
    return array if kind == "linear" else np.ascontiguousarray(array.T)


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
