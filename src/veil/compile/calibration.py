"""What calibration runs on: the inputs that users give, as a call of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

_EXPECTED = "expected a tensor, an array, a tuple of positional inputs, or a dict of keyword arguments"


def calibration_call(forward: Callable[..., Any], x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of ``forward`` for an input ``x``.

    A tensor, an array or a (nested) list of numbers is the one input; a tuple or list of those are several. A dict, or what
    a tokenizer returns, is keyword arguments, or the one input where ``forward`` takes no such names. `TypeError` says
    what is expected.
    """
    if isinstance(x, Mapping) or hasattr(x, "keys"):
        named = {str(name): _value(value, str(name)) for name, value in x.items()}
        for name, value in x.items():  # a tokenizer that is not asked for tensors gives one sequence as a plain list
            if isinstance(value, list) and named[str(name)].ndim == 1:
                named[str(name)] = named[str(name)][None]
        if _takes(forward, named):
            return (), named
        return (type(x)(named) if isinstance(x, dict) else x,), {}
    if isinstance(x, tuple | list) and x and all(isinstance(part, torch.Tensor | np.ndarray) for part in x):
        return tuple(_value(part, "x") for part in x), {}
    if isinstance(x, str | bytes) or hasattr(x, "__next__") or type(x).__name__ == "DataLoader":
        raise TypeError(f"x is a {type(x).__name__}, {_EXPECTED}; a tokenizer's output with return_tensors='pt' is one")
    return (_value(x, "x"),), {}


def _value(value: Any, name: str) -> Any:
    """A tensor of an array or a list of numbers, in float32 where it was float64; other things as they are."""
    if isinstance(value, tuple | list) and value:
        try:
            value = np.asarray(value)
        except ValueError:  # lists of different lengths
            value = None
        if value is None or value.dtype.kind not in "biuf":
            raise TypeError(f"{name} is a list, but not of numbers in rows of one length; {_EXPECTED}")
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name} is an array of {value.dtype}; {_EXPECTED}")
    return torch.from_numpy(value.astype(np.float32) if value.dtype == np.float64 else value.copy())


def _takes(forward: Callable[..., Any], named: dict[str, Any]) -> bool:
    try:
        inspect.signature(forward).bind(**named)
    except TypeError:
        return False
    except ValueError:  # a function whose parameters are not known
        return True
    return True
