"""How far honest answers are from what is expected: the covariance of a chunk's residuals, from the predicted noise.

    Σ_{u,u'} = input_error·γ_u·γ_u' + (shares + rounding)·overlap_{u,u'}

The error of the inputs is common to all slots, and γ says what it becomes; the rest is each slot's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil import noise
from veil.bundle.manifest import Group
from veil.checks.vectors import GroupVectors, edges_of
from veil.kernels.interface import Kernels, SignVectors
from veil.params import Params

F64 = NDArray[np.float64]

_FLOOR = 1.0
"""Variance of rounding to whole words, where weights are zero and there is no noise."""


def covariance(vectors: GroupVectors, group: Group, params: Params) -> F64:
    """Σ [chunks, J, J] of an honest server's residuals."""
    sums = vectors.sums.astype(np.float64)
    common = noise.input_error(params, group.input_bits) * (sums @ sums.transpose(0, 2, 1))
    own = (noise.shares(params) + noise.rounding(group.result_bits)) * vectors.overlap
    return common + own + _FLOOR * np.eye(sums.shape[1])


def whitening(spread: F64) -> F64:
    """M [chunks, J, J] that makes residuals in deviations independent, of variance 1: ``M·ε`` has as many free squares."""
    deviations = np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
    correlation = spread / (deviations[:, :, None] * deviations[:, None, :])
    correlation += 1e-9 * np.eye(spread.shape[1])
    return np.linalg.inv(np.linalg.cholesky(correlation))


def on_kernels(vectors: GroupVectors, group: Group, spread: F64, slots: int, kernels: Kernels) -> SignVectors:
    """The vectors of a group's first slots, where a backend computes; ``spread`` is [chunks, J, J]."""
    edges = edges_of(group)
    chunks = int(np.searchsorted(edges, slots))
    if edges[chunks] != slots:
        raise ValueError(f"group {group.name!r} is not cut at slot {slots}")
    deviations = np.sqrt(np.diagonal(spread, axis1=1, axis2=2))[:chunks]
    return kernels.load_vectors(
        edges[: chunks + 1],
        np.ascontiguousarray(vectors.signs[:, :slots]),
        np.ascontiguousarray(vectors.sums[:chunks]),
        np.ascontiguousarray(1.0 / deviations),
    )
