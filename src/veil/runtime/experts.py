"""Mixtures of experts: their stacked weights as remote layers, and what the server learns of the routing.

The router stays with the client. With ``expert_leak="none"`` every expert is evaluated for every row, so what is sent does
not depend on the routing. With ``"reveal"`` only the routed experts are asked, and the server sees which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from veil.bundle.terms import EXPERT_LEAKS as EXPERT_LEAKS
from veil.bundle.terms import ExpertLeak as ExpertLeak
from veil.bundle.terms import is_one_expert
from veil.runtime.layers import RemoteLayer
from veil.runtime.weights import RemoteWeight


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds experts as stacked weights in the way of transformers 5."""
    if isinstance(module, torch.jit.ScriptModule):  # which keeps its parameters in another way
        return False
    down = module._parameters.get("down_proj")
    described = all(hasattr(module, name) for name in ("num_experts", "has_gate", "is_transposed", "_apply_gate"))
    return described and down is not None and down.ndim == 3


class RemoteExperts(nn.Module):
    """Stands for a module of experts: two remote layers for each, up (with the gate) and down.

    In mode ``torch`` the original runs, except while `calibrating`.
    """

    def __init__(self, name: str, original: nn.Module, leak: ExpertLeak) -> None:
        super().__init__()
        if getattr(original, "has_post_expert_norm", False):
            raise ValueError(f"{name!r} has a norm inside each expert, which veil does not know; leave it out")
        self.leak = leak
        self.calibrating = False
        self._whole = [original]  # in a list, so that its weights are not this module's as well
        self._up = "gate_up_proj" if original.has_gate else "up_proj"
        for part in (self._up, "down_proj"):
            self.add_module(part, nn.ModuleList(_layers(f"{name}.{part}", original, part)))

    @property
    def layers(self) -> list[RemoteLayer]:
        """Every remote layer in it."""
        return [layer for part in (self._up, "down_proj") for layer in self._part(part)]

    @property
    def original(self) -> nn.Module:
        """The module that it stands for."""
        return self._whole[0]

    def forget_weights(self) -> None:
        """Drop the original's weights and keep its activation function."""
        self._whole[0]._parameters.clear()
        for layer in self.layers:
            layer.inner = None

    def state_dict(self, *args: object, **kwargs: object) -> Any:
        """The original's: stacked weights, under their own names; where there are none, what no file can hold."""
        original: Callable[..., dict[str, torch.Tensor]] = self._whole[0].state_dict
        found = original(*args, **kwargs)
        if not self._whole[0]._parameters:
            prefix = kwargs.get("prefix", "")
            for part in (self._up, "down_proj"):
                found[f"{prefix}{part}"] = _stacked(self._part(part))
        return found

    def _load_from_state_dict(self, *args: object) -> None:
        self._whole[0]._load_from_state_dict(*args)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Rows [R, width] float, the experts chosen for each [R, k] int64 and their weights [R, k] float → [R, width]."""
        original = self._whole[0]
        if original._parameters and self.layers[0].router is None and not self.calibrating:
            result: torch.Tensor = original(hidden, chosen, weights)
            return result
        share = _shares(chosen, weights, len(self._part(self._up)))
        return self._every(hidden, share) if self.leak == "none" else self._routed(hidden, share)

    def _every(self, hidden: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        ups = [layer(hidden) for layer in self._part(self._up)]  # one group: the row goes up once
        total = torch.zeros_like(hidden)
        for expert, (up, down) in enumerate(zip(ups, self._part("down_proj"), strict=True)):
            part = share[:, expert, None]
            inside = torch.where(part != 0, self._activate(up), 0)
            total += (part * down(inside)).to(total.dtype)
        return total

    def _routed(self, hidden: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        for expert, (up, down) in enumerate(zip(self._part(self._up), self._part("down_proj"), strict=True)):
            rows = share[:, expert].nonzero()[:, 0]
            if len(rows):
                result = share[rows, expert, None] * down(self._activate(up(hidden[rows])))
                total.index_add_(0, rows, result.to(total.dtype))
        return total

    def _activate(self, up: torch.Tensor) -> torch.Tensor:
        original = self._whole[0]
        function: Callable[[torch.Tensor], torch.Tensor] = original._apply_gate if original.has_gate else original.act_fn  # type: ignore[assignment]
        return function(up)

    def _part(self, name: str) -> Sequence[RemoteLayer]:
        return self.get_submodule(name)  # type: ignore[return-value]


def _stacked(layers: Sequence[RemoteLayer]) -> RemoteWeight:
    first = layers[0]
    name, shape = first.name.rpartition(".")[0], (len(layers), first.out_features, first.in_features)
    return RemoteWeight(name, shape, first.dtype, first.device)


def open_layers(model: nn.Module, layers: Iterable[str], leak: ExpertLeak) -> frozenset[str]:
    """Names of the remote layers that may be asked for some rows only: experts, where the user accepts that leak."""
    if leak == "none":
        return frozenset()
    mixtures = [part for part in model.modules() if isinstance(part, RemoteExperts) and part.leak == "reveal"]
    return frozenset(layer.name for mixture in mixtures for layer in mixture.layers) | set(filter(is_one_expert, layers))


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Let a float pass inside the block go through the experts' remote layers, where it can be watched."""
    mixtures = [part for part in model.modules() if isinstance(part, RemoteExperts)]
    try:
        for mixture in mixtures:
            mixture.calibrating = True
        yield
    finally:
        for mixture in mixtures:
            mixture.calibrating = False


def _shares(chosen: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """The weight of each expert in each row [R, experts]; an index past the last means none."""
    share = torch.zeros(len(chosen), experts + 1, dtype=weights.dtype, device=weights.device)
    return share.scatter_add_(1, chosen.clamp(max=experts), weights)[:, :experts]


def _layers(name: str, original: nn.Module, part: str) -> list[RemoteLayer]:
    stacked, biases = getattr(original, part), getattr(original, f"{part}_bias", None)
    layers = []
    for expert in range(len(stacked)):
        weight = stacked.data[expert].T if original.is_transposed else stacked.data[expert]
        out, width = weight.shape
        with torch.device("meta"):
            inner = nn.Linear(width, out, bias=biases is not None)
        inner.weight = nn.Parameter(weight, requires_grad=False)
        if biases is not None:
            inner.bias = nn.Parameter(biases.data[expert], requires_grad=False)
        layers.append(RemoteLayer(f"{name}.{expert}", "linear", inner, (width, out), weight.dtype))
        layers[-1].is_stacked = True
    return layers
