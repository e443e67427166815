"""What stands for the weight of a remote layer: its shape, dtype and device, and no way to change it."""

from __future__ import annotations

from typing import Any

import torch

from veil.errors import RemoteWeightError

_SHAPE_OF = ("shape", "dtype", "device", "layout", "requires_grad", "ndim", "is_sparse", "is_quantized", "is_meta", "grad")
_ABOUT: frozenset[Any] = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in _SHAPE_OF]
    + [torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.is_complex]
    + [torch.is_floating_point, torch.is_complex, torch.Tensor.__len__]
)


class RemoteWeight(torch.Tensor):
    """The weight of the remote layer ``layer``; where the float weight is here it can be read, and never written to.

    Raises `RemoteWeightError` for what would change it and, on a client without weights, for every use of the values.
    """

    layer: str
    here: bool

    @classmethod
    def of(cls, layer: str, weight: torch.Tensor) -> RemoteWeight:
        """Stands for a float weight that is here."""
        return cls._named(weight.detach(), layer, here=True)

    @classmethod
    def absent(cls, layer: str, shape: tuple[int, int], dtype: torch.dtype) -> RemoteWeight:
        """Stands for a weight [out, in] that only the server has; it takes no memory."""
        return cls._named(torch.zeros((), dtype=dtype).expand(shape), layer, here=False)

    @classmethod
    def _named(cls, values: torch.Tensor, layer: str, *, here: bool) -> RemoteWeight:
        own = values.as_subclass(cls)
        own.layer, own.here = layer, here
        return own

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<weight of {self.layer}>"

    @property
    def data(self) -> torch.Tensor:
        """Itself, which cannot be written to."""
        return self

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        self._refuse_change()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Plain tensors come out; without the values, none."""
        first = args[0] if args else None
        if isinstance(first, RemoteWeight) and _writes(getattr(func, "__name__", "")):
            first._refuse_change()
        absent = next((own for own in args if isinstance(own, RemoteWeight) and not own.here), None)
        if absent is not None and func not in _ABOUT:
            raise RemoteWeightError(f"the weight of {absent.layer} is on the server; what needs its values cannot run here")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _refuse_change(self) -> None:
        raise RemoteWeightError(
            f"the weight of {self.layer} is on the server, so nothing can be merged into it; keep the adapter beside it, or "
            "merge it into the float model and compile that"
        )


def _writes(name: str) -> bool:
    """Whether a tensor's method of this name writes to it."""
    own = name.startswith("__")
    return (own and name.startswith("__i") and name not in ("__invert__", "__int__", "__index__")) or (
        (name.endswith("_") and not own) or name in ("__setitem__", "set_data")
    )
