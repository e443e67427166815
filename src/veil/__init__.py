"""veil: use a large language model on somebody else's machine without showing it the prompt or the answer.

Everything that is public is here; docs/api.md has it by topic. ``import veil`` loads neither torch nor secret-key code:
names are resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.bundle.terms import Terms as Terms
    from veil.client.session import OfflineRows as OfflineRows
    from veil.commands.connect import connect as connect
    from veil.errors import AccessDenied as AccessDenied
    from veil.errors import BundleError as BundleError
    from veil.errors import CorruptMessage as CorruptMessage
    from veil.errors import DeviceUnavailable as DeviceUnavailable
    from veil.errors import HalfDiffers as HalfDiffers
    from veil.errors import IncompatibleServer as IncompatibleServer
    from veil.errors import InsecureParameters as InsecureParameters
    from veil.errors import ModelChanged as ModelChanged
    from veil.errors import ModelSourceError as ModelSourceError
    from veil.errors import NotCompiled as NotCompiled
    from veil.errors import NotFiniteActivation as NotFiniteActivation
    from veil.errors import ParameterError as ParameterError
    from veil.errors import QuotaExceeded as QuotaExceeded
    from veil.errors import RemoteWeightError as RemoteWeightError
    from veil.errors import RowReused as RowReused
    from veil.errors import ServerUnreachable as ServerUnreachable
    from veil.errors import StreamChanged as StreamChanged
    from veil.errors import Unchecked as Unchecked
    from veil.errors import UnevenTraffic as UnevenTraffic
    from veil.errors import UnknownBatch as UnknownBatch
    from veil.errors import UnknownSession as UnknownSession
    from veil.errors import VeilError as VeilError
    from veil.errors import WireError as WireError
    from veil.errors import WrongAnswer as WrongAnswer
    from veil.hybrid.model import HybridFHEModel as HybridFHEModel
    from veil.network.timeouts import Timeouts as Timeouts
    from veil.network.tokens import Tokens as Tokens
    from veil.params import Params as Params
    from veil.params import Spec as Spec
    from veil.report.measure import Fidelity as Fidelity
    from veil.report.measure import fidelity as fidelity
    from veil.runtime.concrete import HybridFHEMode as HybridFHEMode
    from veil.runtime.modules import linear_modules as linear_modules
    from veil.runtime.padding import Padding as Padding
    from veil.server.config import ServerConfig as ServerConfig
    from veil.server.listen import Server as Server
    from veil.server.store import Limits as Limits
    from veil.sources.models import Source as Source
    from veil.sources.models import load_model as load_model
    from veil.training.concrete import LoraTrainer as LoraTrainer
    from veil.training.concrete import get_remote_names as get_remote_names

__version__ = "0.1.0"

_HOMES = {
    "AccessDenied": "veil.errors",
    "BundleError": "veil.errors",
    "CorruptMessage": "veil.errors",
    "DeviceUnavailable": "veil.errors",
    "Fidelity": "veil.report.measure",
    "HalfDiffers": "veil.errors",
    "HybridFHEMode": "veil.runtime.concrete",
    "HybridFHEModel": "veil.hybrid.model",
    "IncompatibleServer": "veil.errors",
    "InsecureParameters": "veil.errors",
    "Limits": "veil.server.store",
    "LoraTrainer": "veil.training.concrete",
    "ModelChanged": "veil.errors",
    "ModelSourceError": "veil.errors",
    "NotCompiled": "veil.errors",
    "NotFiniteActivation": "veil.errors",
    "OfflineRows": "veil.client.session",
    "Padding": "veil.runtime.padding",
    "ParameterError": "veil.errors",
    "Params": "veil.params",
    "QuotaExceeded": "veil.errors",
    "RemoteWeightError": "veil.errors",
    "RowReused": "veil.errors",
    "Server": "veil.server.listen",
    "ServerConfig": "veil.server.config",
    "ServerUnreachable": "veil.errors",
    "Source": "veil.sources.models",
    "Spec": "veil.params",
    "StreamChanged": "veil.errors",
    "Terms": "veil.bundle.terms",
    "Timeouts": "veil.network.timeouts",
    "Tokens": "veil.network.tokens",
    "Unchecked": "veil.errors",
    "UnevenTraffic": "veil.errors",
    "UnknownBatch": "veil.errors",
    "UnknownSession": "veil.errors",
    "VeilError": "veil.errors",
    "WireError": "veil.errors",
    "WrongAnswer": "veil.errors",
    "connect": "veil.commands.connect",
    "fidelity": "veil.report.measure",
    "get_remote_names": "veil.training.concrete",
    "linear_modules": "veil.runtime.modules",
    "load_model": "veil.sources.models",
}

__all__ = [
    "AccessDenied",
    "BundleError",
    "CorruptMessage",
    "DeviceUnavailable",
    "Fidelity",
    "HalfDiffers",
    "HybridFHEMode",
    "HybridFHEModel",
    "IncompatibleServer",
    "InsecureParameters",
    "Limits",
    "LoraTrainer",
    "ModelChanged",
    "ModelSourceError",
    "NotCompiled",
    "NotFiniteActivation",
    "OfflineRows",
    "Padding",
    "ParameterError",
    "Params",
    "QuotaExceeded",
    "RemoteWeightError",
    "RowReused",
    "Server",
    "ServerConfig",
    "ServerUnreachable",
    "Source",
    "Spec",
    "StreamChanged",
    "Terms",
    "Timeouts",
    "Tokens",
    "Unchecked",
    "UnevenTraffic",
    "UnknownBatch",
    "UnknownSession",
    "VeilError",
    "WireError",
    "WrongAnswer",
    "__version__",
    "connect",
    "fidelity",
    "get_remote_names",
    "linear_modules",
    "load_model",
]


def __getattr__(name: str) -> object:
    """A public name, from the module that has it; `ImportError` with what to install where an extra is missing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'veil' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from veil.commands.terminal import extra_of

        if (extra := extra_of(error.name)) is None:
            raise
        raise ImportError(f"veil.{name} needs {error.name}: pip install 'veil-llm[{extra}]'", name=error.name) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
