"""Divisors of a group's inputs and a correction of its biases: what 8-bit weights lose less with, free in the protocol.

The client divides input i by s_i and the matrix's columns are multiplied by it, as in SmoothQuant (arXiv 2211.10438) and
AWQ (2306.00978). A row's step follows its largest weight, so the expected squared error of the outputs is about

    Σ_j max_i (|W_ji|·s_i)² · Σ_i e_i / s_i²,        e_i = var(x_i)/12 + (scheme's noise)·mean(x_i²)

The product of two sums of exponentials in log s is log-convex: one optimum, found by multiplicative steps with the maximum
smoothed. What the error does to the mean of the inputs is constant, and goes into the bias. Only the divisors, the scales
and the biases come from the calibration; `quantize.rounded` makes the integers from the weight and those, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil import noise
from veil.bundle.constants import row_norms, target_norm
from veil.compile.quantize import quantize_weight
from veil.kernels.cpu.kept import jitted
from veil.params import Params

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]

LEAST_ROWS = 16
"""Calibration rows below which weights are rounded plainly: so few say more about themselves than about a layer."""

_SEARCHED, _TRIED, _TRIED_INPUTS = 1024, 512, 128  # rows of weights searched, then tried, and inputs tried on
_STEPS, _STEP, _MOST_STEP = 24, 0.1, 0.5
_PRIOR_ROWS = 4.0  # inputs' worth of belief that all channels vary alike


@dataclass(frozen=True, eq=False)
class Inputs:
    """Calibration rows [n, width] that some layers read, and their mean and variance [width]."""

    rows: F32
    mean: F64
    variance: F64

    @classmethod
    def of(cls, rows: F32 | None) -> Inputs | None:
        """None for too few rows [R, width], rows of nothing but zeros, and rows that are not finite."""
        if rows is None or len(rows) < LEAST_ROWS or not np.isfinite(rows).all() or not rows.any():
            return None
        mean = rows.mean(axis=0, dtype=np.float64)
        variance = np.square(rows - mean.astype(np.float32), dtype=np.float64).sum(axis=0) / (len(rows) - 1)
        return cls(rows, mean, variance)

    @property
    def certain_mean(self) -> F64:
        """The mean, less where few rows or one long row made it: ``mean·max(0, 1 - variance / (n·mean²))`` [width]."""
        square = np.maximum(self.mean**2, 1e-300)
        shrunk: F64 = self.mean * np.maximum(0.0, 1.0 - self.variance / (len(self.rows) * square))
        return shrunk


def divisors_for(weights: Sequence[tuple[F32, int]], inputs: Inputs, params: Params) -> F32 | None:
    """What to divide the inputs by [width], for weights ([out, width], bits) that read them; None for nothing.

    Tried on a sample of the rows and inputs before it is returned: it is None where plain rounding does as well.
    """
    whole = [weight for weight, _ in weights if len(weight)]
    if not whole or not all(weight.any() for weight in whole):
        return None
    share = _SEARCHED / sum(len(weight) for weight in whole)
    magnitudes = np.concatenate([np.abs(_some(weight, int(np.ceil(share * len(weight))))) for weight in whole])
    found = balanced(magnitudes, _energy(magnitudes, inputs, params))
    ones = np.ones_like(found)
    share = _TRIED / sum(len(weight) for weight in whole)
    tried = [(_some(weight, int(np.ceil(share * len(weight)))), bits) for weight, bits in weights if len(weight)]
    return found if _error(tried, inputs, found) < _error(tried, inputs, ones) else None


def balanced(magnitudes: F32, energy: F32) -> F32:
    """The s [width] of geometric mean 1 with the least ``Σ_j max_i (|W_ji|·s_i)² · Σ_i e_i / s_i²``, nearly.

    ``magnitudes`` |W| [rows, width]; ``energy`` e [width], positive somewhere.
    """
    width = magnitudes.shape[1]
    scaled = np.ascontiguousarray(magnitudes / max(float(magnitudes.max()), 1e-30), dtype=np.float32)
    log_s, best, least = np.zeros(width), np.zeros(width), np.inf
    shares = np.zeros(width, dtype=np.float32)
    for _ in range(_STEPS):
        squares = float(_shares_of_maxima(scaled, np.exp(log_s).astype(np.float32), shares))
        weak = energy * np.exp(-2 * log_s)
        total = float(weak.sum())
        value = np.log(max(squares, 1e-300)) + np.log(max(total, 1e-300))
        if value < least:
            least, best = value, log_s
        ratio = (weak / max(total, 1e-300) + 1e-5) / (shares / max(squares, 1e-30) + 1e-5)
        step = np.clip(_STEP * np.log(ratio), -_MOST_STEP, _MOST_STEP)
        log_s = log_s + step - step.mean()
    result: F32 = np.exp(best).astype(np.float32)
    return result


def bias_correction(weight: F32, quantized: I8, scale: F32, inputs: Inputs, divisors: F32 | None) -> F32:
    """What rounding takes from the outputs [out] at the inputs' mean; never more than it takes from those seen."""
    means = np.stack([inputs.certain_mean, inputs.mean], axis=1)
    divided = means if divisors is None else means / divisors[:, None]
    lost = weight @ means.astype(np.float32) - scale[:, None] * _product(quantized, divided.astype(np.float32))
    certain, seen = lost[:, 0], lost[:, 1]
    corrected: F32 = np.clip(certain, np.minimum(seen, 0), np.maximum(seen, 0)).astype(np.float32)
    return corrected


def _product(quantized: I8, columns: F32) -> F32:
    parts = [quantized[i : i + 1024].astype(np.float32) @ columns for i in range(0, len(quantized), 1024)]
    return np.concatenate(parts) if parts else np.zeros((0, columns.shape[1]), np.float32)


def _energy(magnitudes: F32, inputs: Inputs, params: Params) -> F32:
    """e [width]: how much an error in each column of the divided weights counts."""
    quantized, scale = quantize_weight(magnitudes, 8)
    norms = row_norms(quantized)
    scheme = noise.result(params, norms, noise.TYPICAL_BITS) / target_norm(params, float(norms.max(initial=1.0))) ** 2
    squares = scale.astype(np.float64) ** 2
    scheme_share = float((squares * scheme).sum() / max(squares.sum(), 1e-300))
    left = inputs.mean - inputs.certain_mean
    count = len(inputs.rows)
    rounded = inputs.variance + left**2
    rounded = (count * rounded + _PRIOR_ROWS * rounded.mean()) / (count + _PRIOR_ROWS)
    energy = rounded / 12.0 + scheme_share * (inputs.variance + inputs.mean**2)
    result: F32 = (energy / energy.max()).astype(np.float32)
    return result


def _error(tried: Sequence[tuple[F32, int]], inputs: Inputs, divisors: F32) -> float:
    """Squared error of the outputs about their mean error, summed over a sample of the calibration rows."""
    rows = _some(inputs.rows, _TRIED_INPUTS) - inputs.certain_mean.astype(np.float32)
    total = 0.0
    for weight, bits in tried:
        quantized, scale = quantize_weight(weight, bits, divisors)
        lost = weight - quantized * scale[:, None] / divisors
        total += float(np.square(lost @ rows.T, dtype=np.float64).sum())
    return total


def _some(rows: F32, most: int) -> F32:
    """At most ``most`` rows, evenly chosen."""
    chosen: F32 = rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, max(most, 1)).astype(np.int64)]
    return chosen


@jitted(fastmath=True)
def _shares_of_maxima(magnitudes: F32, divisors: F32, shares: F32) -> float:
    """Σ_j of squared row maxima of ``magnitudes·divisors``; each column's share of it, a maximum spread by 16th powers."""
    rows, width = magnitudes.shape
    powers = np.empty(width, dtype=np.float32)
    shares[:] = 0
    squares = np.float32(0)
    for j in range(rows):
        largest = np.float32(1e-30)
        for i in range(width):
            powers[i] = magnitudes[j, i] * divisors[i]
            largest = max(largest, powers[i])
        inverse, total = np.float32(1) / largest, np.float32(0)
        for i in range(width):
            power = max(powers[i] * inverse, np.float32(0.02))  # its 16th power is no denormal number, which are slow
            power *= power
            power *= power
            power *= power
            power *= power
            powers[i] = power
            total += power
        weight = largest * largest / max(total, np.float32(1e-30))
        for i in range(width):
            shares[i] += weight * powers[i]
        squares += largest * largest
    return float(squares)
