"""veil: use a large language model on somebody else's machine without showing it the prompt or the answer.

``import veil`` loads neither torch nor secret-key code; public names are resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veil.bundle.terms import Terms as Terms
    from veil.errors import VeilError as VeilError
    from veil.hybrid.model import HybridFHEModel as HybridFHEModel
    from veil.params import Params as Params
    from veil.params import Spec as Spec
    from veil.runtime.concrete import HybridFHEMode as HybridFHEMode
    from veil.runtime.modules import linear_modules as linear_modules
    from veil.runtime.padding import Padding as Padding
    from veil.training.concrete import LoraTrainer as LoraTrainer
    from veil.training.concrete import get_remote_names as get_remote_names

__version__ = "0.1.0"

_HOMES = {
    "HybridFHEMode": "veil.runtime.concrete",
    "HybridFHEModel": "veil.hybrid.model",
    "LoraTrainer": "veil.training.concrete",
    "Padding": "veil.runtime.padding",
    "Params": "veil.params",
    "Spec": "veil.params",
    "Terms": "veil.bundle.terms",
    "VeilError": "veil.errors",
    "get_remote_names": "veil.training.concrete",
    "linear_modules": "veil.runtime.modules",
}

__all__ = [
    "HybridFHEMode",
    "HybridFHEModel",
    "LoraTrainer",
    "Padding",
    "Params",
    "Spec",
    "Terms",
    "VeilError",
    "__version__",
    "get_remote_names",
    "linear_modules",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'veil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
