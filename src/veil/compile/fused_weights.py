"""Integer weights of fused groups, and the scales that keep the residual stream's outliers from spoiling them.

The group's input is ``[h, a]``, its matrix ``[[0, P], [R, R·P]]`` with P the producer's weight and ``R = W_r·γ`` the
readers' (less its row means for a LayerNorm: centring is linear too). The client divides input i by s_i and the columns
are multiplied by it, which costs the protocol nothing. With ``s_i = √(rms(x_i) / rms(column i))`` input and weights share
the outliers (the idea of SmoothQuant, arXiv 2211.10438, for dynamic activations and with mean squares in place of maxima);
one more factor balances h against a, by the predicted error of the quantized weights and of the scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil import noise
from veil.bundle.constants import GroupConstants, row_norms, target_norm
from veil.bundle.manifest import Group
from veil.compile.norm_fusion import FoundFusion
from veil.compile.quantize import quantize_weight
from veil.params import Params
from veil.runtime.layers import float_bias, float_weight, kind_of
from veil.runtime.norms import Norm

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]

_BALANCES = 2.0 ** np.arange(-3.0, 9.5, 0.5)
_READERS_WEIGHT = 3.0


@dataclass(frozen=True, eq=False)
class FoldParts:
    """Float matrices of a fusion: P [width, in], R [rows, width] and R·P; constants before ρ and after it, [all rows]."""

    producer: F32
    readers: F32
    product: F32
    before: F32
    after: F32


def quantize_fused(
    group: Group, found: FoundFusion, modules: dict[str, nn.Module], params: Params, *, dynamic: bool
) -> tuple[I8, GroupConstants]:
    """Weights [rows, width + in] of 2 to 8 bits and the client's constants of a fused group.

    ``modules`` are the float modules by name. Without ``dynamic`` the inputs' norm is fixed to the largest one seen.
    Raises `ValueError` for a weight that is not finite.
    """
    parts = fusion_parts(found.producer, found.readers, found.norm, lambda name: _affine(name, modules))
    factor = found.factor.cpu().numpy()
    stream, inputs = found.stream.cpu().numpy(), found.inputs.cpu().numpy()
    smooth = _smoothing(parts, _mean_square(stream * factor), _mean_square(inputs * factor), params)
    matrix, scale = fused_matrix(parts, smooth, group)
    constants = GroupConstants(
        scale=scale,
        bias=parts.before,
        bound=float(row_norms(matrix).max(initial=0.0)),
        divisors=smooth,
        shift=parts.after,
    )
    if not dynamic:
        largest = np.linalg.norm(np.concatenate([stream, inputs], axis=1) / smooth, axis=1).max(initial=1e-30)
        constants = replace(constants, fixed_norm=float(largest))
    return matrix, constants


def fused_matrix(parts: FoldParts, smooth: F32, group: Group) -> tuple[I8, F32]:
    """Integers [rows, width + in] of a fusion and their scales [rows], for divisors ``smooth``: anyone gets the same."""
    width = len(parts.producer)
    top = np.concatenate([np.zeros((width, width), np.float32), parts.producer * smooth[width:]], axis=1)
    rest = np.concatenate([parts.readers * smooth[:width], parts.product * smooth[width:]], axis=1)
    ends = np.cumsum([layer.out_features for layer in group.layers[1:]])[:-1]
    matrices = [top, *np.split(rest, ends)]
    pieces = [quantize_weight(part, layer.bits) for part, layer in zip(matrices, group.layers, strict=True)]
    matrix = np.ascontiguousarray(np.concatenate([weights for weights, _ in pieces]))
    return matrix, np.concatenate([scale for _, scale in pieces])


def fusion_parts(producer: str, reading: Sequence[str], norm: Norm, affine: Callable[[str], tuple[F32, F32]]) -> FoldParts:
    """The matrices of a fusion, from weights [out, in] and biases [out] that ``affine`` gives by a layer's name.

    The product is taken in float64, so that rounding it to float32 gives the same on every machine.
    """
    weight_of, added = affine(producer)
    read = [affine(name) for name in reading]
    weight = np.concatenate([weight for weight, _ in read])
    readers = weight * norm.gamma.cpu().numpy()
    if norm.centred:
        readers = readers - readers.mean(axis=1, keepdims=True)
    after = np.concatenate([bias for _, bias in read]) + weight @ norm.beta.cpu().numpy()
    product = (torch.from_numpy(readers).double() @ torch.from_numpy(weight_of).double()).float().numpy()
    return FoldParts(
        producer=weight_of,
        readers=readers,
        product=product,
        before=np.concatenate([added, readers @ added]).astype(np.float32),
        after=np.concatenate([np.zeros_like(added), after]).astype(np.float32),
    )


def _affine(name: str, modules: dict[str, nn.Module]) -> tuple[F32, F32]:
    """Weight [out, in] and bias [out], zeros where there is none."""
    module = modules[name]
    kind = kind_of(module)
    assert kind is not None
    weight, bias = float_weight(module, kind), float_bias(module)
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        raise ValueError(f"{name}: the {'bias' if np.isfinite(weight).all() else 'weight'} holds NaN or infinity")
    return weight, np.zeros(len(weight), np.float32) if bias is None else bias


def _smoothing(parts: FoldParts, stream: F64, inputs: F64, params: Params) -> F32:
    """What the inputs [width + in] are divided by, for mean squares of h·ρ [width] and a·ρ [in]."""
    own = _geometric(stream, parts.readers), _geometric(inputs, parts.product)
    zeros = np.zeros(len(parts.producer), np.float32)
    left = np.concatenate([zeros, np.abs(parts.readers * own[0]).max(axis=1)])
    left_norm = np.concatenate([zeros, _squares(parts.readers * own[0])])
    right, right_norm = (
        np.concatenate([of(parts.producer * own[1]), of(parts.product * own[1])])
        for of in (lambda w: np.abs(w).max(axis=1), _squares)
    )
    energy = np.sum(stream / own[0] ** 2), np.sum(inputs / own[1] ** 2)
    signal = np.concatenate([_squares(parts.producer, inputs), _squares(parts.readers, stream)])
    signal[len(zeros) :] += _squares(parts.product, inputs)
    first = len(zeros)
    even = (np.abs(parts.readers).mean() * own[0].mean()) / max(np.abs(parts.product).mean() * own[1].mean(), 1e-30)
    best, chosen = np.inf, 1.0
    for balance in even * _BALANCES:
        step = np.maximum(np.maximum(left, balance * right), 1e-30) / 127.0
        norms = (left_norm + balance**2 * right_norm) / step**2
        error = step**2 * (energy[0] + energy[1] / balance**2) * (1.0 / 12.0 + _scheme(norms, params))
        score = error[:first].mean() / max(signal[:first].mean(), 1e-30)
        score += _READERS_WEIGHT * error[first:].mean() / max(signal[first:].mean(), 1e-30)
        if score < best:
            best, chosen = score, float(balance)
    return np.concatenate([own[0], own[1] * chosen]).astype(np.float32)


def _scheme(norms: F64, params: Params) -> F64:
    """The scheme's variance in a result, for inputs of norm 1 and squared row norms; see `veil.noise`."""
    rows = np.sqrt(norms)
    variance: F64 = noise.result(params, rows, noise.TYPICAL_BITS) / target_norm(params, float(rows.max(initial=1.0))) ** 2
    return variance


def _geometric(square: F64, weights: F32) -> F32:
    """√(rms(x_i) / rms(column i)), with a floor for inputs and columns that are silent here."""
    column = np.sqrt(_mean_square(weights))
    x = np.sqrt(square)
    x, column = np.maximum(x, 1e-3 * x.mean() + 1e-12), np.maximum(column, 1e-3 * column.mean() + 1e-12)
    scales: F32 = np.sqrt(x / column).astype(np.float32)
    return scales


def _mean_square(x: F32) -> F64:
    mean: F64 = np.square(x, dtype=np.float64).mean(axis=0) if len(x) else np.ones(x.shape[1])
    return mean


def _squares(weights: F32, by: F64 | None = None) -> F64:
    """Σ_i w_ji²·by_i of each row."""
    total: F64 = np.square(weights, dtype=np.float64) @ (np.ones(weights.shape[1]) if by is None else by)
    return total
