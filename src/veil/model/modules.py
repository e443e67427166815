"""Which modules of a model become remote."""

from __future__ import annotations

import difflib
import re

from torch import nn

from veil.model.layers import kind_of

_NOT_TOKENS = re.compile(r"pos|wpe|type|relative", re.IGNORECASE)


def linear_modules(model: nn.Module, include_head: bool = True, include_embedding: bool = False) -> list[str]:
    """Names of every ``nn.Linear`` and ``Conv1D`` of a model, in its order, for ``HybridFHEModel(module_names=...)``.

    ``include_head``: the output layer over the vocabulary too. ``include_embedding``: the token embeddings too, not the
    positional ones. Raises `ValueError` for a model that has none.
    """
    supported = _supported(model)
    chosen = {name for name, module in supported.items() if not isinstance(module, nn.Embedding)}
    if not include_head:
        head = _head(model)
        chosen = {name for name in chosen if supported[name] is not head}
    if include_embedding:
        chosen |= _token_embeddings(model, supported)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no module of a kind that can be remote (nn.Linear, Conv1D)")
    return [name for name in supported if name in chosen]


def select_modules(model: nn.Module, what: str) -> list[str]:
    """Names of the modules to make remote, in the model's order.

    ``what`` is ``linear`` (every ``nn.Linear`` and ``Conv1D``, the head included), ``linear+embedding`` (the token
    embeddings too, not the positional ones), or a regular expression that has to match a module's whole name.

    Raises `ValueError` for a pattern that is not a regular expression or selects nothing.
    """
    if what in ("linear", "linear+embedding"):
        return linear_modules(model, include_embedding=what == "linear+embedding")
    supported = _supported(model)
    chosen = _matching(what, model, list(supported))
    return [name for name in supported if name in chosen]


def nearest_names(name: str, candidates: list[str]) -> str:
    """A help text with the candidates that look most like a name, or an empty one."""
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.3)
    return f"; the nearest names are {', '.join(close)}" if close else ""


def _supported(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if kind_of(module) is not None}


def _head(model: nn.Module) -> nn.Module | None:
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
