"""What measuring needs of a compiled model, wherever it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from veil.bundle.constants import row_norms
from veil.bundle.manifest import Manifest
from veil.errors import NotCompiled
from veil.hybrid.model import HybridFHEModel
from veil.kernels.interface import Kernels, Scaling
from veil.kernels.reference import row_scales
from veil.params import Params
from veil.report.eight_bit import EightBitLayers
from veil.runtime.evaluators import ClearLayers
from veil.runtime.router import Router

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

EIGHT_BIT = "8-bit activations"


@dataclass(frozen=True, eq=False)
class Inside:
    """A compiled model that has its weights, in the mode in force; ``norms`` are ‖W_q,j‖₂ of each group's rows."""

    params: Params
    manifest: Manifest
    router: Router
    clear: ClearLayers
    norms: list[F64]
    scalings: Sequence[Scaling]
    kernels: Kernels

    @classmethod
    def of(cls, hybrid: HybridFHEModel) -> Inside:
        """Raises `NotCompiled` without weights."""
        sides = hybrid.sides
        compiled = sides.compiled
        if compiled.weights is None:
            raise NotCompiled("measuring needs a compiled model with its weights")
        return cls(
            params=compiled.params,
            manifest=compiled.manifest,
            router=sides.router,
            clear=sides.clear_layers(simulate=False),
            norms=[row_norms(weights) for weights in compiled.weights],
            scalings=sides.scalings,
            kernels=sides.kernels,
        )

    @property
    def eight_bit(self) -> EightBitLayers:
        """The same layers for inputs of 8 bits."""
        return EightBitLayers(self.clear, self.scalings, self.kernels)

    def scales(self, group: int, x: F32) -> F64:
        """What the integer results of rows x [R, width] are divided by, [R, 1]; 0 for a row without a result."""
        own = self.scalings[group]
        divided = x if own.divisors is None else x / self.kernels.to_numpy(own.divisors)
        return row_scales(divided, own.target, own.fixed)[1][:, None]


def choose(hybrid: HybridFHEModel, mode: str) -> None:
    """`HybridFHEModel.set_fhe_mode`, with `EIGHT_BIT` as one mode more."""
    hybrid.set_fhe_mode("disable" if mode == EIGHT_BIT else mode)
    if mode == EIGHT_BIT:
        inside = Inside.of(hybrid)
        inside.router.evaluator = inside.eight_bit


def beside(hybrid: HybridFHEModel, ids: torch.Tensor) -> torch.Tensor:
    """Token ids [1, T] int64 where the model is."""
    return ids.to(next(hybrid.model.parameters()).device)
