"""What stands for the weight of a remote layer: its shape, dtype and place, and no values to compute an answer with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import torch

from veil.errors import ModelChanged, RemoteWeightError

_DESCRIBED = frozenset(
    {"dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "is_cpu", "is_meta", "grad"}
    | {"is_sparse", "is_quantized", "grad_fn", "names", "itemsize", "nbytes"}
)
_ASKED = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_complex", "__len__"}
    | {"element_size", "get_device", "is_contiguous", "is_inference", "__hash__"}
)
_LIKE = frozenset(
    {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "type_as", "to"}
    | {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
)
_TURNED = frozenset({"T", "mT", "H", "mH"})
_DERIVED = frozenset(
    {
        "t",
        "transpose",
        "permute",
        "contiguous",
        "clone",
        "detach",
        "to",
        "float",
        "half",
        "bfloat16",
        "double",
        "cpu",
        "cuda",
    }
    | {"add", "sub", "mul", "div", "true_divide", "neg", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"}
    | {"__truediv__", "__neg__"}
)
"""What gives another matrix in the weight's place, which is withheld as the weight is: a weight plus an adapter's."""
_NORMS = frozenset({"norm", "linalg_norm", "linalg_vector_norm"})


class RemoteWeight(torch.Tensor):
    """The weight of the remote layer ``layer``, which nothing is multiplied with and nothing written to.

    Models may look at its dtype, device and shape, and make tensors like it; adapters may take the norms of it and of what
    they add to it, where the float weight is here. Raises `RemoteWeightError` for what would change it and, where the weight
    is on the server, for all that needs values; `ModelChanged` for another use of values: the layer's answer is the
    server's, so what a model would compute with them itself is not what was compiled.
    """

    layer: str
    floats: torch.Tensor | None

    @staticmethod
    def __new__(
        cls: type[RemoteWeight],
        layer: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        floats: torch.Tensor | None = None,
    ) -> RemoteWeight:
        """A weight of this shape; ``floats`` are its values, where they are here."""
        own: RemoteWeight = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        own.layer, own.floats = layer, floats
        return own

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"<the weight of {self.layer}, not readable>"

    @property
    def data(self) -> torch.Tensor:
        """Itself, which cannot be written to."""
        return self

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        refuse_change(self.layer)

    def requires_grad_(self, requires_grad: bool = True) -> RemoteWeight:
        """It does not train, which is all that can be asked."""
        if requires_grad:
            raise RemoteWeightError(
                f"the weight of {self.layer} is on the server and does not train; train adapters beside it"
            )
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Let through what asks about the tensor, and the norms that adapters take."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ("__get__", "__set__"):
            described: str = getattr(func, "__self__", func).__name__
            name = described if name == "__get__" else f"{described}_"
        own = next(part for part in _flat((args, tuple(kwargs.values()))) if isinstance(part, RemoteWeight))
        if name == "requires_grad_" and args[1:] == (False,):
            return None
        if isinstance(args[0] if args else None, RemoteWeight) and _writes(name):
            refuse_change(own.layer)
        if name in _DESCRIBED or name in _ASKED:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if name in _LIKE and not (name == "to" and isinstance(args[0], RemoteWeight)):
            return func(*map(_stand_in, args), **{key: _stand_in(value) for key, value in kwargs.items()})
        if own.floats is None:
            raise RemoteWeightError(f"the weight of {own.layer} is on the server; what needs its values cannot run here")
        if name in _NORMS or name in _TURNED or name in _DERIVED:
            made = func(*map(_values, args), **{key: _values(value) for key, value in kwargs.items()})
            if name in _NORMS:
                return made
            assert isinstance(made, torch.Tensor)
            return cls(own.layer, made.shape, made.dtype, made.device, made)
        raise _gone_around(own.layer)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> NoReturn:
        """Nothing is computed with it."""
        own = next(part for part in _flat((args, tuple((kwargs or {}).values()))) if isinstance(part, RemoteWeight))
        raise _gone_around(own.layer)


def refuse_change(layer: str) -> NoReturn:
    """Raise `RemoteWeightError` for what would change a layer's weight."""
    raise RemoteWeightError(
        f"the weight of {layer} is on the server, so nothing can be merged into it; keep the adapter beside it, or "
        "merge it into the float model and compile that"
    )


def _gone_around(layer: str) -> ModelChanged:
    return ModelChanged(f"the model uses the weight of {layer!r} without calling it; leave it out of module_names")


def _stand_in(value: object) -> object:
    """Of a remote weight a plain tensor with its type, shape and place, and one value that nobody asks for."""
    if not isinstance(value, RemoteWeight):
        return value
    return torch.empty((), dtype=value.dtype, device=value.device).expand(value.shape)


def _values(value: object) -> object:
    return value.floats if isinstance(value, RemoteWeight) else value


def _flat(parts: Iterable[object]) -> list[object]:
    return [own for part in parts for own in (_flat(part) if isinstance(part, list | tuple) else [part])]


def _writes(name: str) -> bool:
    """Whether a tensor's method of this name writes to it."""
    own = name.startswith("__")
    return (own and name.startswith("__i") and name not in ("__invert__", "__int__", "__index__")) or (
        (name.endswith("_") and not own) or name in ("__setitem__", "set_data")
    )
