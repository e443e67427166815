"""What can become a hybrid model, and what cannot, each with one line that says what to do."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from veil.runtime.experts import is_experts
from veil.runtime.layers import float_weight_shape, kind_of
from veil.runtime.linearity import check_linear

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_QUANTIZED = "is quantized already; load the model in a float type, veil quantizes it"
_WRAPPERS = {
    "OptimizedModule": "is compiled by torch.compile; pass the model that it was made from (its _orig_mod)",
    "DataParallel": "runs in several threads; pass its .module",
    "DistributedDataParallel": "is one of several processes' copies; pass its .module",
    "FullyShardedDataParallel": "is spread over processes; pass the whole model",
}


def check_model(model: object) -> nn.Module:
    """The model, if it is one whose layers can be replaced; else `TypeError`."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        held = getattr(model, "model", None)
        remedy = "; pass its .model" if isinstance(held, nn.Module) else ""
        raise TypeError(f"model is a {kind}, expected a torch.nn.Module{remedy}")
    if kind in _WRAPPERS:
        raise TypeError(f"model is a {kind}, which {_WRAPPERS[kind]}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model is a {kind} of TorchScript, whose layers cannot be replaced; pass the model it was made from"
        )
    if kind_of(model) is not None:
        raise ValueError(f"model is itself a {kind}, and only layers inside it are replaced; pass nn.Sequential(model)")
    return model


def check_kind(name: str, module: nn.Module) -> None:
    """`ValueError` for a module of no kind that can be remote; it says why a quantized or scripted layer is none."""
    if kind_of(module) is not None or is_experts(module):
        return
    kind = type(module).__name__
    if is_quantized(module):
        raise ValueError(f"{name}: a {kind} of {_package(module)} {_QUANTIZED}")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{name}: a {kind} of TorchScript cannot be replaced; build the model of its own code")
    raise ValueError(f"{name!r} is a {kind}; a remote module is an nn.Linear, a Conv1D or an nn.Embedding")


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is another package's linear layer without a float matrix: torch.ao's, GPTQ's, AWQ's, BitNet's."""
    sized = any(isinstance(module.__dict__.get(name), int) for name in ("in_features", "infeatures"))
    if not sized or kind_of(module) is not None:
        return False
    return not any(
        kind_of(part) is not None or any(p is not None and p.ndim > 1 and p.is_floating_point() for p in own)
        for part in module.modules()
        for own in [part._parameters.values()]
    )


def _package(module: nn.Module) -> str:
    parts = type(module).__module__.split(".")
    return ".".join(parts[:2] if parts[0] == "torch" else parts[:1])


def check_weight(name: str, module: nn.Module) -> None:
    """`ValueError` for a layer whose weight is not a float matrix with values here: quantized, on disk, or nowhere."""
    weight = module.weight
    kind = type(module).__name__
    if not isinstance(weight, torch.Tensor):
        raise ValueError(f"{name}: a {kind} without a weight of its own cannot be remote; leave it out of module_names")
    if isinstance(weight, UninitializedParameter):
        raise ValueError(f"{name}: a {kind} has no weight before the model's first pass; run the model once, then wrap it")
    if weight.is_meta:
        raise ValueError(
            f"{name}: its weight has no values in memory (a meta tensor, or offloaded to disk); load the model "
            "whole, without device_map"
        )
    if not weight.numel():
        raise ValueError(f"{name}: its weight is {tuple(weight.shape)}, with nothing in it; leave it out of module_names")
    if weight.is_complex():
        raise ValueError(f"{name}: a {kind} of complex numbers cannot be remote; leave it out of module_names")
    if weight.dtype not in _FLOATS or weight.ndim != 2:
        raise ValueError(f"{name}: a {kind} with a weight of {weight.dtype} {_QUANTIZED}")
    sizes = [getattr(module, own, None) for own in ("out_features", "in_features")]
    if isinstance(module, nn.Linear) and tuple(sizes) != tuple(weight.shape):
        raise ValueError(
            f"{name}: its weight is {tuple(weight.shape)} and not {tuple(sizes)}; load the model in a float type"
        )


def is_linear(name: str, module: nn.Module) -> bool:
    """Whether a module of a remote kind answers as a linear layer or a table does; a router that chooses does not."""
    kind = kind_of(module)
    if kind is None:
        return False
    check_weight(name, module)
    if kind == "embedding":
        return True
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    assert len(float_weight_shape(module, kind)) == 2
    try:
        check_linear(module, weight.detach() if kind == "linear" else weight.detach().T)
    except ValueError:
        return False
    return True
