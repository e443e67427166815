"""Arguments of the wrong type, told in one line where they are given and not where they are first used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from veil.given import flag_given
from veil.params import Params
from veil.runtime.layers import RemoteLayer


def names_of(module_names: object) -> list[str]:
    """Module names as a list; `TypeError` for modules themselves, or anything else that is no name."""
    remedy = "give names, such as those of veil.linear_modules(model)"
    if isinstance(module_names, str):
        return [module_names]
    if isinstance(module_names, nn.Module) or not isinstance(module_names, Iterable):
        raise TypeError(f"module_names is a {type(module_names).__name__}; {remedy}")
    names = list(module_names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"module_names holds a {type(name).__name__}; {remedy}")
    return names


def check_fresh(model: nn.Module) -> None:
    """`ValueError` for a model that has remote layers already."""
    wrapped = next((part.name for part in model.modules() if isinstance(part, RemoteLayer)), None)
    if wrapped is not None:
        raise ValueError(f"{wrapped!r} of this model is remote already; load the model again to choose other layers")


def check_compiling(arguments: Mapping[str, object]) -> None:
    """`TypeError` for arguments of ``compile_model`` whose type cannot be right."""
    dynamic, params, progress = (arguments.get(name) for name in ("use_dynamic_quantization", "params", "progress"))
    if "trainable" in arguments:
        flag_given("trainable", arguments["trainable"])
    if "use_dynamic_quantization" in arguments and not isinstance(dynamic, bool):
        raise TypeError(f"use_dynamic_quantization is {dynamic!r}, expected True or False; name other arguments")
    if params is not None and not isinstance(params, Params):
        raise TypeError(f"params is a {type(params).__name__}, expected veil.Params, such as Params.from_spec(Spec(...))")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a {type(progress).__name__}, expected a function of (stage, done, total)")
