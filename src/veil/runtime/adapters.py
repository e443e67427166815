"""Adapters of the peft package around or inside a model: which modules are theirs, and what a name is without them.

peft itself is not needed here; its modules are known by what they have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.|$)")
_BEFORE = "base_model.model."
_PROMPTS = "prompt_encoder"


def plain_name(name: str) -> str:
    """A module's or parameter's name as it is in the model without adapters."""
    while name.startswith(_BEFORE):
        name = name[len(_BEFORE) :]
    return _WRAPPED.sub("", name)


def base_of(model: nn.Module) -> nn.Module:
    """The model that a PeftModel is around, or the model itself."""
    base = getattr(model, "get_base_model", None)
    within: nn.Module = base() if callable(base) and hasattr(model, "peft_config") else model
    return within


def within_adapters(model: nn.Module) -> set[str]:
    """Names of the modules and parameters that belong to adapters: a layer's that wraps another, but for what it wraps."""
    found: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not hasattr(module, "adapter_layer_names") and name.rpartition(".")[2] != _PROMPTS:
            continue
        prefix = f"{name}." if name else ""
        kept = "base_layer" if "base_layer" in module._modules else "original_module"
        if name.rpartition(".")[2] == _PROMPTS:
            kept = ""
            found.add(name)
        for child, part in module._modules.items():
            if child != kept and part is not None:
                found |= {
                    f"{prefix}{child}{'.' if own else ''}{own}" for own, _ in part.named_modules(remove_duplicate=False)
                }
        found |= {f"{prefix}{own}" for own in module._parameters}
    return found


def replaced_by_adapters(model: nn.Module) -> set[str]:
    """Names of the modules that an adapter keeps for when it is off, and computes with a copy of its own otherwise."""
    found: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        kept = getattr(module, "original_module", None)
        if isinstance(kept, nn.Module) and hasattr(module, "modules_to_save"):
            prefix = f"{name}.original_module" if name else "original_module"
            found |= {f"{prefix}.{own}" if own else prefix for own, _ in kept.named_modules(remove_duplicate=False)}
    return found


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[bool]:
    """Inside the block the layers of a model answer without their adapters, but for those merged into them.

    Gives whether there are any. What trains is left as it is.
    """
    layers = [part for part in model.modules() if hasattr(part, "adapter_layer_names")]
    layers += [part for part in model.modules() if hasattr(part, "original_module") and hasattr(part, "modules_to_save")]
    changed = [part for part in layers if not getattr(part, "merged", False) and not part.__dict__.get("_disable_adapters")]
    for part in changed:
        part.__dict__["_disable_adapters"] = True
    try:
        yield bool(layers)
    finally:
        for part in changed:
            part.__dict__["_disable_adapters"] = False
