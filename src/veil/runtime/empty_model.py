"""A model of a configuration, without weights, made in a moment: its tensors come from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from veil.typing import Config, LanguageModel

_WITH_VALUES = frozenset({torch.arange, torch.full, torch.linspace, torch.ones, torch.zeros})


def model_without_weights(model_class: type[LanguageModel], config: Config) -> LanguageModel:
    """A model whose parameters are on ``meta``, but for some that begin with a value; of buffers, any may have values."""
    with torch.device("meta"):
        try:
            with _FewMetaTensors():
                return model_class._from_config(config)
        except (NotImplementedError, RuntimeError):  # a model that computes with both kinds of tensors while it is made
            return model_class._from_config(config)


class _FewMetaTensors(TorchFunctionMode):
    """Inside the block, and inside one of ``torch.device("meta")``, nothing computes on ``meta``.

    torch does that in Python, and loads its compiler for it, a second of one core. What begins with a value is on the
    processor; torch's initializers leave tensors as they are.
    """

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else named["tensor"]
        if function in _WITH_VALUES and named.get("device") is None:
            named["device"] = "cpu"
        return function(*args, **named)
