"""What the client keeps of each group: how inputs are scaled to fill the modulus, and results scaled back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.kernels.interface import Kernels, Scaling
from veil.params import INNER_MODULUS_BITS, Params

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class GroupConstants:
    """Scales c and biases [rows] of a group, and the norm ``bound`` that its inputs are scaled for.

    Inputs are divided by ``divisors`` [width], if there are any. ``fixed_norm`` is the calibrated ‖x‖ when quantization is
    not dynamic: one scale for every row, longer rows clipped to it. ``shift`` [rows] of a fused group is added after ρ.
    """

    scale: F32
    bias: F32
    bound: float
    fixed_norm: float | None = None
    divisors: F32 | None = None
    shift: F32 | None = None


def scalings_of(constants: Sequence[GroupConstants], params: Params, kernels: Kernels) -> list[Scaling]:
    """The groups' constants where a backend computes."""
    return [
        Scaling(
            divisors=None if own.divisors is None else kernels.asarray(own.divisors),
            scale=kernels.asarray(own.scale),
            bias=kernels.asarray(own.bias),
            target=target_norm(params, own.bound),
            fixed=own.fixed_norm or 0.0,
        )
        for own in constants
    ]


def row_norms(weights: I8) -> NDArray[np.float64]:
    """‖W_q,j‖₂ of each row [out]."""
    wide = weights.astype(np.int32)
    return np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.int64).astype(np.float64))


def target_norm(params: Params, bound: float) -> float:
    """The norm η·2^31 / bound that rows are scaled to, so that ``|W_q·x_q| < 2^31`` for any input.

    ``bound`` is ``max_j ‖W_q,j‖₂`` by Cauchy–Schwarz, or ``max |W_q|`` for one-hot inputs.
    """
    return params.spec.headroom * 2.0 ** (INNER_MODULUS_BITS - 1) / max(bound, 1.0)
