"""What stands for a remote layer's float weight: a tensor of its type, shape and place that has no values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from veil.errors import ModelChanged

_DESCRIBED = frozenset(
    {"dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "is_cpu", "is_meta"}
)
_DESCRIBED |= {"is_sparse", "is_quantized", "grad_fn", "names"}
_ASKED = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_complex", "__len__"}
)
_ASKED |= {"element_size", "get_device", "is_contiguous", "is_inference", "__hash__"}
_LIKE = frozenset({"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "type_as", "to"})
_LIKE |= {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}


class WithheldWeight(torch.Tensor):
    """A weight that cannot be read: models may look at its dtype, device and shape, and make tensors like it.

    Everything else raises `ModelChanged`: the layer's values are the server's, so what a model would compute with them
    itself is not what was compiled.
    """

    layer: str

    @staticmethod
    def __new__(cls, layer: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> WithheldWeight:
        """The weight of the layer of this name."""
        own: WithheldWeight = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        own.layer = layer
        return own

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<the weight of {self.layer}, not readable>"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let through what asks about the tensor and not for its values."""
        name = getattr(func, "__name__", "")
        known = func.__self__.__name__ in _DESCRIBED if name == "__get__" else name in _ASKED
        if known:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if name in _LIKE and not (name == "to" and isinstance(args[0], WithheldWeight)):
            return func(*map(_stand_in, args), **{key: _stand_in(value) for key, value in (kwargs or {}).items()})
        raise _bypassed(args)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Nothing is computed with it."""
        raise _bypassed(args)


def _stand_in(value: Any) -> Any:
    """Of a withheld weight a plain tensor with its type, shape and place, and one value that nobody asks for."""
    if not isinstance(value, WithheldWeight):
        return value
    return torch.empty((), dtype=value.dtype, device=value.device).expand(value.shape)


def _bypassed(args: Any) -> ModelChanged:
    flat = [part for arg in args for part in (arg if isinstance(arg, list | tuple) else [arg])]
    layer = next((part.layer for part in flat if isinstance(part, WithheldWeight)), "a remote layer")
    return ModelChanged(f"the model uses the weight of {layer!r} without calling it; leave it out of module_names")
