"""`ConcreteNames`: the methods and arguments that users of Concrete ML's `HybridFHEModel` call."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

from torch import nn

from veil.runtime import concrete
from veil.runtime.acceptance import check_model
from veil.runtime.arguments import check_compiling, check_fresh, names_of
from veil.runtime.experts import RemoteExperts, is_experts
from veil.runtime.layers import RemoteLayer, kind_of
from veil.runtime.modules import linear_modules
from veil.runtime.tracers import HOOKS, refuse_torchscript

if TYPE_CHECKING:
    from veil.hybrid.model import HybridFHEModel

P = ParamSpec("P")
T = TypeVar("T")


class ConcreteNames:
    """What `HybridFHEModel` has for users of Concrete ML; docs/concrete-ml.md goes through it call by call."""

    model_name: object = "model"
    verbose: object = 0
    _composites: dict[str, tuple[str, ...]] = {}  # noqa: RUF012  # replaced for each object, never changed

    def forward(self, *args: object, fhe: str | None = None, **kwargs: object) -> Any:
        """The same as calling the object."""
        return _hybrid(self)(*args, fhe=fhe, **kwargs)

    @property
    def remote_modules(self) -> dict[str, RemoteLayer]:
        """The remote layers by name."""
        return dict(_hybrid(self)._layers)

    def save_and_clear_private_info(self, path: str | Path, via_mlir: bool = True) -> None:
        """`HybridFHEModel.save`, then forget the remote layers' weights: only the client's half stays in this object.

        ``via_mlir`` changes nothing: bundles are the same for every machine.
        """
        hybrid = _hybrid(self)
        hybrid.save(path)
        hybrid.close()
        hybrid.set_fhe_mode("torch")
        for layer in hybrid._layers.values():
            layer.inner = None
        for part in hybrid.model.modules():
            if isinstance(part, RemoteExperts):
                part.forget_weights()
        hybrid._forget_weights()

    def init_client(self, path_to_clients: str | Path | None = None, path_to_keys: str | Path | None = None) -> NoReturn:
        """Refused with a `ValueError` that names veil's way."""
        raise ValueError(
            "there are no client files and keys to set up here: HybridFHEModel.connect('HOST:PORT', 'BUNDLE/client') "
            "opens the model of a server, makes its keys and keeps them in memory"
        )

    if not TYPE_CHECKING:  # whoever checks types is to see that a name is wrong

        def __getattr__(self, name: str) -> NoReturn:
            if name in HOOKS:
                refuse_torchscript()
            instead = concrete.ATTRIBUTES.get(name)
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}" + (f": {instead}" if instead else "")
            )


def takes_concrete_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """The constructor, which also knows Concrete ML's further arguments and names of composite modules."""

    @functools.wraps(init)
    def wrapped(self: ConcreteNames, model: nn.Module, module_names: object, *more: object, **options: object) -> None:
        if len(more) > len(concrete.CONSTRUCTOR):
            raise TypeError(f"HybridFHEModel takes at most {2 + len(concrete.CONSTRUCTOR)} arguments by position")
        given = dict(zip(concrete.CONSTRUCTOR, more, strict=False))
        given |= {name: options.pop(name) for name in concrete.CONSTRUCTOR if name in options}
        concrete.check_options(given, concrete.CONSTRUCTOR)
        self.model_name, self.verbose = given.get("model_name", "model"), given.get("verbose", 0)
        names, self._composites = _linears_of(model, module_names)
        init(self, model, names, **options)  # type: ignore[arg-type]

    return cast("Callable[P, None]", wrapped)


def takes_concrete_options(compile_model: Callable[P, T]) -> Callable[P, T]:
    """``compile_model``, which also knows Concrete ML's further arguments and its dict of bits by kind."""
    signature = inspect.signature(compile_model)

    @functools.wraps(compile_model)
    def wrapped(self: ConcreteNames, *args: object, **options: object) -> T:
        given = {name: options.pop(name) for name in concrete.COMPILING if name in options}
        concrete.check_options(given, concrete.COMPILING)
        bound = signature.bind(self, *args, **options)
        chosen = bound.arguments
        check_compiling(chosen)
        if "n_bits" in chosen:
            chosen["n_bits"] = _bits_by_layer(self._composites, concrete.weight_bits(chosen["n_bits"]))
        if self.verbose and chosen.get("progress") is None:
            chosen["progress"] = _Stages()
        return compile_model(*bound.args, **bound.kwargs)

    return cast("Callable[P, T]", wrapped)


class _Stages:
    """A line on standard error for each stage of long work, which ``verbose`` asks for."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            print(f"veil: {stage}", file=sys.stderr)
        self._stage = stage


def _linears_of(model: nn.Module, module_names: object) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Module names, where a composite module's means its linear layers; and which layers each such name means."""
    check_model(model)
    names = names_of(module_names)
    check_fresh(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    composites = {}
    for name in names:
        module = modules.get(name) if name else None
        if module is None or kind_of(module) is not None or is_experts(module):
            continue
        inside = any(kind_of(part) in ("linear", "conv1d") or is_experts(part) for part in module.modules())
        if inside:
            composites[name] = tuple(f"{name}.{layer}" for layer in linear_modules(module))
    return [layer for name in names for layer in composites.get(name, (name,))], composites


def _bits_by_layer(composites: dict[str, tuple[str, ...]], n_bits: object) -> object:
    """Bits by name, where a composite module's name means its layers; a layer's own name comes first."""
    if not isinstance(n_bits, dict):
        return n_bits
    spread = {layer: bits for name, bits in n_bits.items() for layer in composites.get(name, ())}
    return spread | {name: bits for name, bits in n_bits.items() if name not in composites}


def _hybrid(names: ConcreteNames) -> HybridFHEModel:
    return cast("HybridFHEModel", names)
