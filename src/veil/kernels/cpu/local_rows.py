"""A token's own layers on the client, one row at a time in float32: norm, activation, and attention over the rows before.

Each is what torch takes six to forty calls for, whose cost is not in the numbers. Arrays are float32 in C order.
"""

from __future__ import annotations

import numpy as np

from veil.kernels.cpu.kept import jitted
from veil.kernels.cpu.vector import float_of_bits

SILU, GELU_TANH, RELU = 0, 1, 2
"""Activations: x·sigmoid(x), GELU by its tanh formula, and max(x, 0)."""

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5·2^23: the sum with a float32 below 2^22 is rounded to an integer
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_TANH_INNER, _TANH_CUBE = np.float32(0.7978845608028654), np.float32(0.044715)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@jitted(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x within 2 units of float32's last place, without a branch: 2^n times a polynomial (Cephes)."""
    x = min(max(x, _LEAST), _MOST)
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + _ONE) * float_of_bits(np.int32(np.int32(n) + np.int32(127)) << np.int32(23))


@jitted(nogil=True, error_model="numpy")
def norm_row(x, gamma, beta, plus, epsilon, centred, out):  # type: ignore[no-untyped-def]
    """``ρ·(x - mean)·(γ + plus) + β`` with ρ = 1/√(mean square + ε) for x [width]; without ``centred`` mean is 0.

    β may be empty.
    """
    mean, scale = _mean_and_factor(x, epsilon, centred)
    middle, plus = np.float32(mean), np.float32(plus)
    for j in range(x.size):
        out[j] = (x[j] - middle) * scale * (gamma[j] + plus)
    if beta.size:
        for j in range(x.size):
            out[j] += beta[j]


@jitted(nogil=True, error_model="numpy")
def factor_row(x, before, added, epsilon, centred):  # type: ignore[no-untyped-def]
    """ρ of `norm_row` for x [width], which must be ``before + added``; NaN where it is not."""
    other = np.int32(0)
    for j in range(x.size):
        other |= np.int32(x[j] != before[j] + added[j])
    return np.float32(np.nan) if other else _mean_and_factor(x, epsilon, centred)[1]


@jitted(error_model="numpy")
def _mean_and_factor(x, epsilon, centred):  # type: ignore[no-untyped-def]
    mean = 0.0
    if centred:
        mean = _sum(x) / x.size
    return mean, np.float32(1.0 / np.sqrt(_squares(x, mean) / x.size + epsilon))


@jitted(fastmath={"reassoc"})
def _sum(x):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(x.size):
        total += np.float64(x[j])
    return total


@jitted(fastmath={"reassoc"})
def _squares(x, mean):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(x.size):
        v = np.float64(x[j]) - mean
        total += v * v
    return total


@jitted(nogil=True, error_model="numpy")
def activate_row(x, kind, gated, out):  # type: ignore[no-untyped-def]
    """An activation of the first ``out.size`` values of x, times the values behind them if ``gated``."""
    size = out.size
    if kind == SILU:
        for j in range(size):
            out[j] = x[j] / (_ONE + _exp(-x[j]))
    elif kind == GELU_TANH:
        for j in range(size):
            v = x[j]
            inner = _TANH_INNER * (v + _TANH_CUBE * v * v * v)
            out[j] = v / (_ONE + _exp(-_TWO * inner))  # (1 + tanh u)/2 is the sigmoid of 2u
    else:
        for j in range(size):
            out[j] = max(x[j], _ZERO)
    if gated:
        for j in range(size):
            out[j] *= x[size + j]


@jitted(fastmath={"reassoc", "contract"})
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = _ZERO
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@jitted()
def _rotate(x, cos, sin, out):  # type: ignore[no-untyped-def]
    """``x·cos + rotate_half(x)·sin``; all of it where cos is empty."""
    half = x.size // 2
    if not cos.size:
        for j in range(x.size):
            out[j] = x[j]
        return
    for j in range(half):
        out[j] = x[j] * cos[j] - x[half + j] * sin[j]
        out[half + j] = x[half + j] * cos[half + j] + x[j] * sin[half + j]


@jitted(nogil=True, error_model="numpy", fastmath={"contract"})
def attend_row(qkv, cos, sin, keys, values, length, scale, out):  # type: ignore[no-untyped-def]
    """Attention of one row to the ``length`` rows before it and itself, which joins them at place ``length``.

    qkv: queries [heads·size], keys and values [groups·size] of the row, one behind the other. cos, sin [size], or empty.
    keys, values [groups, room, size]. out [heads·size].
    """
    groups, size = keys.shape[0], keys.shape[2]
    heads = out.size // size
    share, count = heads // groups, length + 1
    query, scores = np.empty(size, np.float32), np.empty(count, np.float32)
    for g in range(groups):
        first = (heads + g) * size
        _rotate(qkv[first : first + size], cos, sin, keys[g, length])
        first += groups * size
        for j in range(size):
            values[g, length, j] = qkv[first + j]
        for h in range(g * share, (g + 1) * share):
            _rotate(qkv[h * size : (h + 1) * size], cos, sin, query)
            most = np.float32(-np.inf)
            for t in range(count):
                scores[t] = _dot(query, keys[g, t]) * np.float32(scale)
                most = max(most, scores[t])
            _weigh(scores, most)
            _sum_rows(scores, values[g], out[h * size : (h + 1) * size])


@jitted(fastmath={"reassoc"}, error_model="numpy")
def _weigh(scores, most):  # type: ignore[no-untyped-def]
    """Softmax; NaN everywhere if there is one, or infinity."""
    total = _ZERO
    for t in range(scores.size):
        total += scores[t] * _ZERO
    for t in range(scores.size):
        scores[t] = _exp(scores[t] - most)
    for t in range(scores.size):
        total += scores[t]
    for t in range(scores.size):
        scores[t] /= total


@jitted(fastmath={"contract"})
def _sum_rows(weights, rows, out):  # type: ignore[no-untyped-def]
    """``Σ weights[t]·rows[t]``, four rows at a time."""
    count, whole = weights.size, weights.size // 4 * 4
    for j in range(out.size):
        out[j] = _ZERO
    for t in range(0, whole, 4):
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        first, second, third, fourth = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
        for j in range(out.size):
            out[j] += a * first[j] + b * second[j] + c * third[j] + d * fourth[j]
    for t in range(whole, count):
        for j in range(out.size):
            out[j] += weights[t] * rows[t, j]
