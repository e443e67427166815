"""Weights that the user trusts, read a piece at a time: from a checkpoint's files where they are named as the model's parts.

Where they are not (experts that a loader stacks, embeddings that a module scales, files of another kind) the model is loaded
whole, as `veil compile` loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from veil.bundle.manifest import Layer, Manifest
from veil.progress import Progress
from veil.runtime.experts import ExpertLeak
from veil.runtime.layers import RemoteLayer, float_bias, float_weight
from veil.runtime.modules import find_modules, replace_modules
from veil.sources.models import Source, checkpoint_folder, load_model

if TYPE_CHECKING:
    from veil.typing import LanguageModel

F32 = NDArray[np.float32]


class TrustedWeights(Protocol):
    """A model's weights by the names of its modules."""

    origin: str
    """Where they come from, in words."""

    def rows(self, layer: Layer, first: int, last: int) -> F32:
        """Some rows [last - first, in] of a remote layer's weight, which is [out, in]."""

    def bias(self, layer: Layer) -> F32 | None:
        """A remote layer's bias [out], or None."""

    def tensor(self, name: str) -> torch.Tensor | None:
        """A parameter or buffer of what the client keeps, as it is there; None where there is none of this name."""


class CheckpointFiles:
    """The safetensors files of a checkpoint, of which no more than a piece is in memory."""

    def __init__(self, folder: Path, origin: str, prefix: str, tied: dict[str, str]) -> None:
        self.origin = origin
        self._prefix = prefix
        self._tied = tied
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def has_all(self, manifest: Manifest, parameters: Sequence[str]) -> bool:
        """Whether every remote layer and every parameter of the client's is here under a name that says what it is."""
        layers = [layer for group in manifest.forward for layer in group.layers]
        for layer in layers:
            key = self._key(f"{layer.name}.weight")
            if key is None or layer.kind == "embedding":
                return False
            with safe_open(self._files[key], framework="pt") as file:
                shape = file.get_slice(key).get_shape()
            if list(shape) != _stored(layer) or layer.bias != (self._key(f"{layer.name}.bias") is not None):
                return False
        return all(self._key(name) is not None for name in parameters)

    def rows(self, layer: Layer, first: int, last: int) -> F32:
        """A remote layer's weights [last - first, in_features], some outputs of them."""
        key = self._key(f"{layer.name}.weight")
        assert key is not None
        with safe_open(self._files[key], framework="pt") as file:
            part = file.get_slice(key)
            piece = part[first:last] if layer.kind == "linear" else part[:, first:last].T
        return np.ascontiguousarray(piece.to(torch.float32).numpy())

    def bias(self, layer: Layer) -> F32 | None:
        """A remote layer's bias [out], if it has one."""
        found = self.tensor(f"{layer.name}.bias")
        return None if found is None else found.to(torch.float32).numpy()

    def tensor(self, name: str) -> torch.Tensor | None:
        """A tensor outside the remote layers, in its own shape and dtype; None where there is none of that name."""
        key = self._key(name)
        if key is None:
            return None
        with safe_open(self._files[key], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor

    def _key(self, name: str) -> str | None:
        """A checkpoint's name for a tensor: with or without the name of the model within, or that of one it is tied to."""
        for own in (name, self._tied.get(name)):
            if own is None:
                continue
            for key in (own, f"{self._prefix}.{own}", own.removeprefix(f"{self._prefix}.")):
                if key in self._files:
                    return key
        return None


class LoadedModel:
    """A model in memory, whose remote layers were replaced as a compiler replaces them."""

    def __init__(self, source: Source, manifest: Manifest, mixtures: dict[str, ExpertLeak]) -> None:
        self.origin = source.origin
        names = [layer.name for group in manifest.forward for layer in group.layers]
        own = [name for name in names if not any(name.startswith(f"{mixture}.") for mixture in mixtures)]
        leak: ExpertLeak = "reveal" if "reveal" in mixtures.values() else "none"
        modules = find_modules(source.model, [*own, *mixtures], leak)
        self._layers = replace_modules(source.model, modules, leak)
        model = source.model
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._tensors = {name: tensor.detach() for name, tensor in named}
        self._last: tuple[str, F32] | None = None

    def rows(self, layer: Layer, first: int, last: int) -> F32:
        """A remote layer's weights [last - first, in_features], some outputs of them."""
        if self._last is None or self._last[0] != layer.name:
            self._last = layer.name, float_weight(self._inner(layer), layer.kind)
        return self._last[1][first:last]

    def bias(self, layer: Layer) -> F32 | None:
        """A remote layer's bias [out], if it has one."""
        return float_bias(self._inner(layer))

    def tensor(self, name: str) -> torch.Tensor | None:
        """A tensor outside the remote layers, in its own shape and dtype; None where there is none of that name."""
        return self._tensors.get(name)

    def _inner(self, layer: Layer) -> nn.Module:
        found: RemoteLayer | None = self._layers.get(layer.name)
        if found is None or found.inner is None:
            raise ValueError(f"the model has no layer {layer.name!r}")
        return found.inner


def trusted_weights(
    source: str, model: LanguageModel, manifest: Manifest, mixtures: dict[str, ExpertLeak], progress: Progress
) -> TrustedWeights:
    """The weights of a source for a half whose model is ``model``; `ModelSourceError`, `ValueError` for one that differs."""
    folder, origin = checkpoint_folder(source, progress)
    tied = getattr(model, "_tied_weights_keys", None) or {}
    tied = dict(tied) if isinstance(tied, dict) and getattr(model.config, "tie_word_embeddings", False) else {}
    if folder is not None and not mixtures:
        files = CheckpointFiles(folder, origin, model.base_model_prefix, tied)
        if files.has_all(manifest, [name for name, _ in model.named_parameters(remove_duplicate=False)]):
            return files
    headless = type(model).__name__.endswith("Model") and not model.can_generate()
    loaded = load_model(source, task="embed" if headless else "auto", progress=progress)
    return LoadedModel(loaded, manifest, mixtures)


def _stored(layer: Layer) -> list[int]:
    shape = [layer.out_features, layer.in_features]
    return shape if layer.kind == "linear" else shape[::-1]
