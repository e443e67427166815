"""Which modules of a model become remote, and how they are replaced."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

import torch
from torch import nn

from veil.bundle.manifest import NAME
from veil.bundle.terms import is_one_expert
from veil.runtime.acceptance import check_kind, check_model, check_weight, is_linear, is_quantized
from veil.runtime.adapters import plain_name, replaced_by_adapters, within_adapters
from veil.runtime.experts import ExpertLeak, RemoteExperts, is_experts
from veil.runtime.layers import RemoteLayer, float_weight_shape, kind_of, remote_layer
from veil.runtime.local_parts import tell_local_parts

_NOT_TOKENS = re.compile(r"pos|wpe|type|relative", re.IGNORECASE)


def linear_modules(
    model: nn.Module, include_head: bool = True, include_embedding: bool = False, *, tell: bool = True
) -> list[str]:
    """Names of every linear layer of a model, in its order, for ``HybridFHEModel(module_names=...)``.

    Those are ``nn.Linear``, ``Conv1D``, and modules that hold a mixture's experts as stacked weights. Not among them are
    adapters (LoRA), whose weights are the user's, routers that give something else, and torch's MultiheadAttention, which
    multiplies with its weights itself; what else stays with the client is logged with its share of the parameters, if
    ``tell`` (`veil.runtime.local_parts`).

    ``include_head``: the output layer over the vocabulary too. ``include_embedding``: the token embeddings too, not the
    positional ones. Raises `ValueError` for a model that has none.
    """
    supported = _supported(check_model(model))
    chosen = {name for name, module in supported.items() if not isinstance(module, nn.Embedding)}
    if not include_head:
        head = output_head(model)
        chosen = {name for name in chosen if supported[name] is not head}
    if include_embedding:
        chosen |= _token_embeddings(model, supported)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no module of a kind that can be remote (nn.Linear, Conv1D)")
    names = [name for name in supported if name in chosen]
    if tell:
        tell_local_parts(model, names)
    return names


def select_modules(model: nn.Module, what: str, *, tell: bool = True) -> list[str]:
    """Names of the modules to make remote, in the model's order.

    ``what`` is ``linear`` (every linear layer, the head and experts included), ``linear+embedding`` (the token
    embeddings too, not the positional ones), or a regular expression that has to match a module's whole name.

    Raises `ValueError` for a pattern that is not a regular expression or selects nothing.
    """
    if what in ("linear", "linear+embedding"):
        return linear_modules(model, include_embedding=what == "linear+embedding", tell=tell)
    supported = _supported(check_model(model))
    chosen = _matching(what, model, list(supported))
    return [name for name in supported if name in chosen]


def nearest_names(name: str, candidates: list[str]) -> str:
    """A help text with the candidates that look most like a name, or an empty one."""
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.3)
    return f"; the nearest names are {', '.join(close)}" if close else ""


def _supported(model: nn.Module) -> dict[str, nn.Module]:
    adapters = within_adapters(model) | replaced_by_adapters(model)
    within = {id(part.out_proj) for part in model.modules() if isinstance(part, nn.MultiheadAttention)}
    found = {name: part for name, part in model.named_modules() if name not in adapters and id(part) not in within}
    for name, module in found.items():
        if is_quantized(module):
            check_kind(name, module)
    return {name: module for name, module in found.items() if is_linear(name, module) or is_experts(module)}


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits, for a model that says which."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


def _token_embeddings(model: nn.Module, supported: dict[str, nn.Module]) -> set[str]:
    embeddings = {name: module for name, module in supported.items() if isinstance(module, nn.Embedding)}
    by_name = {name for name in embeddings if not _NOT_TOKENS.search(name.rpartition(".")[2])}
    try:
        main = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return by_name
    if not isinstance(main, nn.Embedding):
        return by_name
    rows = main.num_embeddings
    return {n for n, m in embeddings.items() if m is main or (n in by_name and m.num_embeddings == rows)}


def _matching(pattern: str, model: nn.Module, names: list[str]) -> set[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{pattern!r} is not a regular expression ({error}); use linear, linear+embedding or a pattern"
        ) from None
    chosen = {name for name in names if expression.fullmatch(name)}
    if chosen:
        return chosen
    for name, module in model.named_modules():
        if name and expression.fullmatch(name):
            raise ValueError(
                f"{pattern!r} matches only modules that cannot be remote, such as {name} ({type(module).__name__}); "
                f"try {pattern + r'[.].*'!r}"
            )
    raise ValueError(f"no module's name matches {pattern!r}{nearest_names(pattern, names)}")


def find_modules(model: nn.Module, names: Iterable[str], leak: ExpertLeak = "none") -> dict[str, nn.Module]:
    """The modules of these names.

    `ValueError` names one that is not there and the nearest, is of no remote kind, or tells how a model routes.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.pop("", None)
    found: dict[str, nn.Module] = {}
    for name in names:
        if name not in modules:
            usable = [own for own, module in modules.items() if kind_of(module) is not None or is_experts(module)]
            near = difflib.get_close_matches(name, usable, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise ValueError(f"the model has no module named {name!r}{hint}")
        check_kind(name, modules[name])
        if leak == "none" and is_one_expert(name):
            raise ValueError(
                f"{name!r} is one expert of several that this model calls as it routes, which would tell the server; "
                "leave it out, or accept that with expert_leak='reveal'"
            )
        if not re.fullmatch(NAME, name):
            raise ValueError(
                f"{name!r} cannot be a remote layer's name, which has letters, digits, '_', '.' and '-' only; rename it"
            )
        if kind_of(modules[name]) is not None:
            check_weight(name, modules[name])
        if modules[name] not in found.values():
            found[name] = modules[name]
    if not found:
        raise ValueError("no module names were given")
    return found


def replace_modules(model: nn.Module, modules: dict[str, nn.Module], leak: ExpertLeak = "none") -> dict[str, RemoteLayer]:
    """Put a stand-in wherever each module stands (a shared module, or a shared table, stands in several places)."""
    layers: dict[str, RemoteLayer] = {}
    for name, module in modules.items():
        if is_experts(module):
            experts = RemoteExperts(name, module, leak)
            layers |= {layer.name: layer for layer in experts.layers}
            _put(model, module, experts)
            continue
        same = next((layer for layer in layers.values() if _same_table(layer, module)), None)
        stand_in = same or _stand_in(name, module)
        layers[stand_in.name] = stand_in
        _put(model, module, stand_in)
    _freeze(model, layers.values())
    return layers


def _freeze(model: nn.Module, layers: Collection[RemoteLayer]) -> None:
    """Remote weights do not train, but for one that a local module has too."""
    remote = [layer.inner for layer in layers if layer.inner is not None]
    inside = {id(part) for own in (*layers, *remote) for part in own.modules()}
    local = {id(own) for part in model.modules() if id(part) not in inside for own in part._parameters.values()}
    for module in remote:
        for parameter in module.parameters():
            if id(parameter) not in local:
                parameter.requires_grad_(False)


def _stand_in(name: str, module: nn.Module) -> RemoteLayer:
    kind = kind_of(module)
    assert kind is not None
    out_features, in_features = float_weight_shape(module, kind)
    dtype = module.weight.dtype
    assert isinstance(dtype, torch.dtype)
    return remote_layer(plain_name(name), kind, module, (in_features, out_features), dtype)


def _put(model: nn.Module, module: nn.Module, stand_in: nn.Module) -> None:
    for parent in list(model.modules()):
        if isinstance(parent, RemoteLayer):
            continue
        for child_name, child in list(parent._modules.items()):
            if child is module:
                parent._modules[child_name] = stand_in
                _turn(parent)


def _turn(adapter: nn.Module) -> None:
    """Tell an adapter around a Conv1D, and its parts, that the stand-in's weight is [out, in]."""
    for part in adapter.modules() if hasattr(adapter, "base_layer") else ():
        if getattr(part, "fan_in_fan_out", False):
            part.fan_in_fan_out = False  # type: ignore[assignment]


def _same_table(layer: RemoteLayer, module: nn.Module) -> bool:
    """Whether an embedding has the table of one that is remote already, as an encoder's and a decoder's have."""
    inner = layer.inner
    return isinstance(inner, nn.Embedding) and type(inner) is type(module) and inner.weight is module.weight
