"""What a norm does, read off the module and checked by trying it: a matrix, a constant, and one scalar a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""What modules call ε."""


@dataclass(frozen=True, eq=False)
class Norm:
    """``y = ρ(x)·γ⊙(x - mean) + β``, ρ = 1/√(mean square + ε); RMSNorm has no mean and no β.

    ``gamma`` and ``beta`` are [width] float32.
    """

    gamma: torch.Tensor
    beta: torch.Tensor
    epsilon: float
    centred: bool

    def factor(self, x: torch.Tensor) -> torch.Tensor:
        """ρ of rows x [..., width] → [..., 1] float32."""
        x = x.float()
        if self.centred:
            x = x - x.mean(dim=-1, keepdim=True)
        return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.epsilon)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The norm itself: x [..., width] of any float dtype → the same shape, float32."""
        centred = x.float() - x.float().mean(dim=-1, keepdim=True) if self.centred else x.float()
        return self.factor(x) * centred * self.gamma + self.beta


def is_norm(module: nn.Module) -> bool:
    """Whether a module looks like a norm over the last axis; `norm_of` knows whether it is one."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def norm_of(module: nn.Module, call: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Norm | None:
    """The norm that a module computes, or None for one that computes something else.

    Tried on rows that no norm leaves alone: LayerNorm, RMSNorm with weight γ, and with weight 1 + γ. ``call`` is tried in
    the place of the module, without its hooks.
    """
    weight = getattr(module, "weight", None)
    epsilon = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    gamma = weight.detach().float().cpu()
    bias = getattr(module, "bias", None)
    beta = torch.zeros_like(gamma) if bias is None else bias.detach().float().cpu()
    width = len(gamma)
    first, second = torch.linspace(-1, 2, width, device="cpu"), torch.linspace(0, 9, width, device="cpu").sin() + 0.3
    rows = torch.stack([first, second]).to(weight)
    with torch.no_grad():
        found = (call or module)(rows).float().cpu()
    loose = 2e-2 if weight.dtype != torch.float32 else 1e-4
    for norm in (
        Norm(gamma, beta, epsilon, centred=True),
        Norm(gamma, beta, epsilon, centred=False),
        Norm(gamma + 1, beta, epsilon, centred=False),
    ):
        if torch.allclose(norm.apply(rows.cpu()), found, rtol=loose, atol=loose * float(found.abs().max())):
            return norm
    return None
