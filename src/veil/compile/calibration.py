"""What calibration runs on: the inputs that users give, as a call of the model."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset

from veil.errors import VeilError

_EXPECTED = "expected a tensor, an array, a tuple of positional inputs, or a dict of keyword arguments"


@runtime_checkable
class NamedInputs(Protocol):
    """Inputs by name: a dict, or what a tokenizer returns."""

    def keys(self) -> Iterable[object]:
        """The names."""

    def items(self) -> Iterable[tuple[object, object]]:
        """Names and inputs."""


def calibration_call(forward: Callable[..., object], x: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Positional and keyword arguments of ``forward`` for an input ``x``.

    A tensor, an array or a (nested) list of numbers is the one input; a tuple or list of those are several. A dict, or what
    a tokenizer returns, is keyword arguments, or the one input where ``forward`` takes no such names. `TypeError` says
    what is expected.
    """
    if isinstance(x, NamedInputs):
        named = {str(name): _value(value, str(name)) for name, value in x.items()}
        for name, value in x.items():  # a tokenizer that is not asked for tensors gives one sequence as a plain list
            own = named[str(name)]
            if isinstance(value, list) and isinstance(own, torch.Tensor) and own.ndim == 1:
                named[str(name)] = own[None]
        if _takes(forward, named):
            return (), named
        return (type(x)(named) if isinstance(x, dict) else x,), {}
    if isinstance(x, tuple | list) and x and all(isinstance(part, torch.Tensor | np.ndarray) for part in x):
        if len(x) > 1 and not _takes(forward, x):
            raise TypeError(
                f"x is {len(x)} inputs, which the model does not take at once; join batches to one with torch.cat"
            )
        return tuple(_value(part, "x") for part in x), {}
    if hasattr(x, "__array__") and not isinstance(x, torch.Tensor | np.ndarray):  # a table of pandas
        x = np.asarray(x)
    if isinstance(x, str | bytes | Dataset) or hasattr(x, "__next__") or type(x).__name__ == "DataLoader":
        raise TypeError(f"x is a {type(x).__name__}, {_EXPECTED}; a tokenizer's output with return_tensors='pt' is one")
    return (_value(x, "x"),), {}


def calibration_run(
    forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> Callable[[], object]:
    """A pass of the float model on these arguments; what torch cannot compute is a `ValueError` with their shapes."""

    def run() -> object:
        try:
            return forward(*args, **kwargs)
        except (VeilError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, IndexError) as error:
            given = ", ".join([*map(_shape, args), *(f"{name} {_shape(value)}" for name, value in kwargs.items())])
            why = " ".join(str(error).split())
            raise ValueError(f"the float model cannot be run on x ({given}): {why}; give inputs as it takes them") from error

    return run


def _shape(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _value(value: object, name: str) -> object:
    """A tensor of an array or a list of numbers, in float32 where it was float64; other things as they are."""
    array = value if isinstance(value, np.ndarray) else None
    if isinstance(value, tuple | list) and value:
        with contextlib.suppress(ValueError):  # lists of different lengths
            array = np.asarray(value)
        if array is None or array.dtype.kind not in "biuf":
            raise TypeError(f"{name} is a list, but not of numbers in rows of one length; {_EXPECTED}")
    if array is None:
        return value
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} is an array of {array.dtype}; {_EXPECTED}")
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array.copy())


def _takes(forward: Callable[..., object], given: Mapping[str, object] | Sequence[object]) -> bool:
    try:
        signature = inspect.signature(forward)
        signature.bind(**given) if isinstance(given, Mapping) else signature.bind(*given)
    except TypeError:
        return False
    except ValueError:  # a function whose parameters are not known
        return True
    return True
