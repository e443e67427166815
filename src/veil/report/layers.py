"""Every layer's error, encrypted, beside its prediction and 8-bit activations', and what to expect of other widths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from veil import noise
from veil.hybrid.model import HybridFHEModel
from veil.report.inside import Inside, beside, choose

F64 = NDArray[np.float64]

WIDTHS = (512, 1024, 2048, 4096, 8192, 14336, 28672)
"""Input widths of layers, from those of a 135M model to those of a 70B one."""


@dataclass(frozen=True, kw_only=True)
class LayerQuality:
    """Signal to noise of a layer's product in dB, encrypted, predicted and with 8-bit activations, on the same inputs.

    Every row counts alike, whatever its length. ``ratio`` is the measured error variance over the predicted one.
    """

    name: str
    snr_db: float
    predicted_db: float
    eight_bit_db: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class WidthQuality:
    """Predicted signal to noise of a layer of some width, in dB, and the bits of each value on the wire that it takes."""

    width: int
    input_bits: int
    result_bits: int
    snr_db: float


def layer_quality(hybrid: HybridFHEModel, ids: torch.Tensor, mode: str = "execute") -> list[LayerQuality]:
    """Every layer's error over one pass of token ids [1, T] in ``mode``, beside its prediction and 8-bit activations'."""
    return layer_quality_of(hybrid, lambda: hybrid.model(beside(hybrid, ids)), mode)


def layer_quality_of(hybrid: HybridFHEModel, run: Callable[[], object], mode: str = "execute") -> list[LayerQuality]:
    """`layer_quality` for a pass that ``run`` makes."""
    choose(hybrid, mode)
    inside = Inside.of(hybrid)
    kernels, rough = inside.kernels, inside.eight_bit
    seen: dict[int, list[F64]] = defaultdict(list)

    def observe(group: int, x: torch.Tensor, outputs: torch.Tensor) -> None:
        rows, info = kernels.from_torch(x), inside.manifest.groups[group]
        exact, other, got = (
            kernels.to_numpy(values).astype(np.float64)
            for values in (
                info.whole(inside.clear.evaluate(group, rows)),
                info.whole(rough.evaluate(group, rows)),
                kernels.from_torch(outputs),
            )
        )
        tau, own = inside.scales(group, kernels.to_numpy(rows)), inside.scalings[group]
        bias, scale = (kernels.to_numpy(values).astype(np.float64)[None] for values in (own.bias, own.scale))
        parts = (exact - info.whole(bias), got - exact, other - exact)
        squares = [((part * tau) ** 2).sum(axis=0) for part in parts]
        bits = noise.WireBits(info.input_bits, info.result_bits)
        predicted = info.whole(noise.result(inside.params, inside.norms[group], bits) * scale**2 * np.count_nonzero(tau))
        seen[group].append(np.stack([*squares, predicted[0]]))

    inside.router.observer = observe
    try:
        with torch.no_grad():
            run()
    finally:
        inside.router.observer = None
    layers = []
    for name, (group, part) in inside.manifest.by_layer.items():
        if group in seen:
            signal, error, eight, predicted = np.sum(seen[group], axis=0)[:, part].sum(axis=1)
            layers.append(
                LayerQuality(
                    name=name,
                    snr_db=decibels(signal, error),
                    predicted_db=decibels(signal, predicted),
                    eight_bit_db=decibels(signal, eight),
                    ratio=float(error / predicted) if predicted else 0.0,
                )
            )
    return layers


def width_quality(hybrid: HybridFHEModel, widths: Sequence[int] = WIDTHS) -> list[WidthQuality]:
    """What to expect of layers of other widths, if their weights are spread like this model's and as wide as high.

    The norm of the largest row grows with the root of the width; the factor is the median of this model's layers.
    """
    inside = Inside.of(hybrid)
    groups = zip(inside.manifest.forward, inside.norms, strict=False)
    factors = [norms.max(initial=1.0) / np.sqrt(g.width) for g, norms in groups if g.layers[0].kind != "embedding"]
    factor, params, found = float(np.median(factors or [1.0])), inside.params, []
    for width in widths:
        norm = factor * np.sqrt(width)
        bits = noise.wire_bits(params, width, width, norm)
        snr_db = noise.signal_to_noise_db(params, width, norm, bits)
        found.append(WidthQuality(width=width, input_bits=bits.input, result_bits=bits.result, snr_db=snr_db))
    return found


def decibels(signal: float, error: float) -> float:
    """Ten times the logarithm of a ratio of powers."""
    return float(10 * (np.log10(max(signal, 1e-300)) - np.log10(max(error, 1e-300))))
