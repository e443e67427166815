"""The remote layers' place in autograd: an encrypted product forward, and one with the transposed weights back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Tensor = torch.Tensor
Evaluate = Callable[[Tensor], Tensor]
"""A group's outputs [R, rows] float32 for inputs [R, width] float32."""


class _Context(Protocol):
    """What autograd hands from a step forward to the step back."""

    back: Evaluate


class EncryptedProduct(torch.autograd.Function):
    """``forward(x)``, whose gradient is ``back(g)``, asked for when it is wanted: never for an ``x`` that needs none."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, forward: Evaluate, back: Evaluate) -> Tensor:
        """Rows x [R, width] float32 → [R, rows]."""
        ctx.back = back
        return forward(x.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        """Gradients [R, rows] → [R, width], both float32.

        A row with NaN or infinity, as gradient scaling tries them, goes up as zeros and comes back as NaN.
        """
        rows = gradient.detach().to(torch.float32).contiguous()
        finite = torch.isfinite(rows).all(dim=1, keepdim=True)
        if bool(finite.all()):
            return ctx.back(rows), None, None
        return torch.where(finite, ctx.back(torch.where(finite, rows, 0.0)), torch.nan), None, None


def encrypted_product(x: Tensor, forward: Evaluate, back: Evaluate) -> Tensor:
    """``forward(x)``, [R, width] → [R, rows] float32, as a step of autograd, with ``back`` as its gradient."""
    outputs: Tensor = EncryptedProduct.apply(x, forward, back)  # type: ignore[no-untyped-call]
    return outputs
