"""8-bit dynamic quantization of activations, as other systems do it, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from veil.kernels.interface import Array, Kernels, Scaling
from veil.runtime.evaluators import Evaluator


class EightBitLayers:
    """The integer layers in clear, for inputs that are rounded to 8 bits before; a `veil.runtime.evaluators.Evaluator`."""

    def __init__(self, clear: Evaluator, scalings: Sequence[Scaling], kernels: Kernels) -> None:
        self._clear = clear
        self._scalings = scalings
        self._kernels = kernels

    def evaluate(self, group: int, x: Array, slots: int | None = None) -> Array:
        """A group's outputs [R, slots] for rows x [R, width] as `eight_bit` rounds them after the divisors, both float32."""
        kernels, divisors = self._kernels, self._scalings[group].divisors
        values = kernels.to_torch(x)
        if divisors is None:
            rounded = eight_bit(values)
        else:
            by = kernels.to_torch(divisors)
            rounded = eight_bit(values / by) * by
        return self._clear.evaluate(group, kernels.from_torch(rounded), slots)


def eight_bit(x: torch.Tensor) -> torch.Tensor:
    """``round(x / c)·c`` with ``c = max|x| / 127`` of each row of x [R, width] float32; rows of zeros stay."""
    step = x.abs().amax(dim=1, keepdim=True).double() / 127
    safe = torch.where(step > 0, step, torch.ones_like(step))
    return (torch.round(x / safe) * step).float()
