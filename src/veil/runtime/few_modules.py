"""A limit to the modules of a model that somebody else's configuration describes: a word of it may ask for millions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from veil.bundle.manifest import Manifest
from veil.errors import BundleError

_FOR_EACH, _MOST_WITHOUT = 16, 20_000
"""Modules for each tensor or remote layer of a half, and for parts that it has nothing of."""


@contextmanager
def few_modules(tensors: Path, manifest: Manifest) -> Iterator[None]:
    """Raise `BundleError` when the block puts together far more modules than a model of these tensors and layers has."""
    with safe_open(tensors, "pt") as stored:
        parts = len(stored.keys()) + sum(len(group.layers) for group in manifest.groups)
    left = _MOST_WITHOUT + _FOR_EACH * parts

    def count(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise BundleError("the model's configuration asks for many more layers than the half has; distrust who made it")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
