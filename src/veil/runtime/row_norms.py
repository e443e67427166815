"""The shorter ways of norms and activations for one row; see `row_steps`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.runtime.norms import EPSILONS, is_norm, norm_of
from veil.runtime.row_steps import LocalStep, close, own_forward, rows_to_try

F32 = NDArray[np.float32]
_NOTHING = np.empty(0, np.float32)
_EDGES = (-1e4, -88.0, -20.0, -3.0, 0.0, 3.0, 6.5, 20.0, 88.0, 1e4)
"""Where activations that are nearly the same differ."""


class NormStep(LocalStep):
    """LayerNorm and RMSNorm, with weight γ or 1 + γ."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._weight: torch.Tensor | None = None
        self._address = 0
        self._gamma = self._beta = _NOTHING
        self._plus, self._centred, self._epsilon = 0.0, False, ""

    def compute(self, x: F32, out: F32) -> bool:
        """See `LocalStep`; False for another width than the weight's."""
        from veil.kernels.cpu.local_rows import norm_row

        weight = self.module._parameters.get("weight")
        if weight is None or ((weight is not self._weight or weight.data_ptr() != self._address) and not self._load()):
            return False
        if x.size != self._gamma.size:
            return False
        epsilon = self.module.__dict__[self._epsilon]
        norm_row(x, self._gamma, self._beta, self._plus, epsilon, self._centred, out)
        return True

    def _load(self) -> bool:
        """Look at the values of weight and bias, which are read where they are; False where that cannot be."""
        weight, bias = self.module._parameters["weight"], self.module._parameters.get("bias")
        values = [own.detach() for own in (weight, bias) if own is not None]
        if any(own.dtype is not torch.float32 or not own.is_cpu or not own.is_contiguous() for own in values):
            return False
        assert weight is not None
        self._weight, self._address = weight, weight.data_ptr()
        self._gamma, self._beta = values[0].numpy(), values[1].numpy() if len(values) > 1 else _NOTHING
        return True

    def agrees(self) -> bool:
        """See `LocalStep`."""
        forward = own_forward(self.module)
        norm = norm_of(self.module, forward)  # type: ignore[arg-type]
        names = [name for name in EPSILONS if name in self.module.__dict__]
        if norm is None or not names or not self._load():
            return False
        self._centred, self._epsilon = norm.centred, names[0]
        self._plus = 0.0 if np.array_equal(norm.gamma.numpy(), self._gamma) else 1.0
        for x in rows_to_try(self._gamma.size):
            out = np.empty_like(x)
            if not self.compute(x, out) or not close(out, forward(torch.from_numpy(x)[None])[0]):  # type: ignore[index]
                return False
        return True


class ActivationStep(LocalStep):
    """An activation that torch takes several calls for."""

    kind: int | None = None

    def compute(self, x: F32, out: F32) -> bool:
        """See `LocalStep`."""
        from veil.kernels.cpu.local_rows import activate_row

        activate_row(x, self.kind, False, out)
        return True

    def agrees(self) -> bool:
        """See `LocalStep`."""
        self.kind = activation_of(self.module)
        return self.kind is not None


def activation_of(module: nn.Module) -> int | None:
    """Which activation of `veil.kernels.cpu.local_rows` a module is, tried with its own forward; None for another one."""
    from veil.kernels.cpu.local_rows import GELU_TANH, RELU, SILU, activate_row

    x = np.concatenate([np.array(_EDGES, np.float32), np.linspace(-12, 12, 997, dtype=np.float32)])
    try:
        found = own_forward(module)(torch.from_numpy(x.copy()))
    except Exception:  # whatever a module that is no activation says to one tensor
        return None
    if type(found) is not torch.Tensor or found.shape != x.shape or found.dtype is not torch.float32:
        return None
    out = np.empty_like(x)
    for kind in (SILU, GELU_TANH, RELU):
        activate_row(x, kind, False, out)
        if np.allclose(out, found.numpy(), rtol=2e-6, atol=1e-6):
            return kind
    return None


def local_step(module: nn.Module) -> LocalStep | None:
    """The step of a module without remote layers, or None for one that looks like neither a norm nor an activation."""
    if "forward" in module.__dict__:
        return None
    if is_norm(module) and not any(module.children()):
        return NormStep(module)
    stateless = not module._parameters and not module._buffers and not module._modules
    return ActivationStep(module) if stateless and "GELU" in type(module).__name__ else None
