"""A model of a configuration, without weights, made in a moment: its tensors come from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from veil.typing import Config, LanguageModel

_SIZED = frozenset({torch.full, torch.ones, torch.zeros})
_MOST = 1 << 24
"""Elements that have values, of all tensors together: a configuration may be somebody else's, and ask for any."""


def model_without_weights(model_class: type[LanguageModel], config: Config) -> LanguageModel:
    """A model whose parameters are on ``meta``, but for some that begin with a value; of buffers, any may have values."""
    with torch.device("meta"):
        try:
            with _FewMetaTensors():
                return model_class._from_config(config)
        except (NotImplementedError, RuntimeError):  # a model that computes with both kinds of tensors while it is made
            return model_class._from_config(config)


class _FewMetaTensors(TorchFunctionMode):
    """Inside the block, and inside one of ``torch.device("meta")``, next to nothing computes on ``meta``.

    torch does that in Python, and loads its compiler for it, a second of one core. What begins with a value is on the
    processor, while there are few such; torch's initializers leave tensors as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = float(_MOST)

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else named["tensor"]
        if named.get("device") is None and (function is torch.arange or function in _SIZED):
            elements = _elements(function, args, named)
            if elements <= self._left:
                self._left -= elements
                named["device"] = "cpu"
        return function(*args, **named)


def _elements(function: object, args: tuple[Any, ...], named: dict[str, Any]) -> float:
    """How many elements a call makes; infinitely many where that is not plain."""
    try:
        if function is torch.arange:
            begin, end, step = (0, args[0], 1) if len(args) == 1 else (args[0], args[1], args[2] if len(args) > 2 else 1)
            return max(0.0, math.ceil((float(end) - float(begin)) / float(step)))
        size = args[0] if args and not isinstance(args[0], int) else args if args else named["size"]
        return float(math.prod(size))
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return math.inf
