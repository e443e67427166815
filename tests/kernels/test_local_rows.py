"""A token's own layers as kernels: what torch computes, in float64, for awkward sizes and values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from veil.kernels.cpu.local_rows import GELU_TANH, RELU, SILU, activate_row, attend_row, factor_row, norm_row

F32 = np.float32
NONE = np.empty(0, F32)


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(F32)


def double(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


@pytest.mark.parametrize("width", [1, 7, 64, 579])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e4])
def test_norms(width: int, scale: float) -> None:
    x, gamma, beta, out = (
        values(width, scale=scale) + F32(scale),
        values(width, seed=1),
        values(width, seed=2),
        np.empty(width, F32),
    )
    norm_row(x, gamma, NONE, 1.0, 1e-5, False, out)
    expected = functional.rms_norm(double(x), (width,), double(gamma) + 1, 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    norm_row(x, gamma, beta, 0.0, 1e-5, True, out)
    expected = functional.layer_norm(double(x), (width,), double(gamma), double(beta), 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("width", [1, 7, 64, 579])
@pytest.mark.parametrize("centred", [False, True])
def test_the_factor_of_a_sum(width: int, centred: bool) -> None:
    before, added = values(width), values(width, seed=1)
    x = before + added
    ones, out = np.ones(width, F32), np.empty(width, F32)
    factor = factor_row(x, before, added, 1e-5, centred)
    norm_row(x, ones, NONE, 0.0, 1e-5, centred, out)
    middle = F32(x.astype(np.float64).mean()) if centred else F32(0)
    np.testing.assert_allclose(out, (x - middle) * factor, rtol=1e-5, atol=1e-6)
    assert isinstance(factor, float) and factor == F32(factor)
    x[-1] = np.nextafter(x[-1], F32(np.inf))
    assert np.isnan(factor_row(x, before, added, 1e-5, centred))
    x[-1] = np.nan
    assert np.isnan(factor_row(x, before, added, 1e-5, centred))


@pytest.mark.parametrize("size", [1, 13, 1536])
@pytest.mark.parametrize("gated", [False, True])
def test_activations(size: int, gated: bool) -> None:
    x, out = values(2 * size, scale=6.0), np.empty(size, F32)
    x[0] = -200.0
    formulas: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
        SILU: functional.silu,
        GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
        RELU: functional.relu,
    }
    for kind, formula in formulas.items():
        activate_row(x, kind, gated, out)
        expected = formula(double(x[:size])) * (double(x[size:]) if gated else 1)
        np.testing.assert_allclose(out, expected, rtol=2e-6, atol=2e-6)


def rotated(x: torch.Tensor, cos: np.ndarray, sin: np.ndarray) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * double(cos) + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * double(sin)


@pytest.mark.parametrize(("heads", "groups", "size"), [(1, 1, 2), (9, 3, 64), (4, 4, 6), (5, 1, 20)])
@pytest.mark.parametrize("length", [0, 1, 6, 130])
@pytest.mark.parametrize("turns", [True, False])
def test_attention(heads: int, groups: int, size: int, length: int, turns: bool) -> None:
    qkv = values((heads + 2 * groups) * size, scale=2.0)
    keys, kept = values(groups, length + 3, size, seed=1), values(groups, length + 3, size, seed=2)
    before, angle = (keys.copy(), kept.copy()), values(size // 2, seed=3, scale=3.0)
    cos, sin = (np.tile(part, 2) for part in (np.cos(angle), np.sin(angle))) if turns else (NONE, NONE)
    out = np.empty(heads * size, F32)
    attend_row(qkv, cos, sin, keys, kept, length, size**-0.5, out)

    query, key, value = (
        part.view(-1, size) for part in torch.split(double(qkv), [heads * size, groups * size, groups * size])
    )
    if turns:
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
    np.testing.assert_allclose(keys[:, length], key, atol=1e-5)
    np.testing.assert_array_equal(kept[:, length], value.to(torch.float32))
    for after, own in zip((keys, kept), before, strict=True):  # nothing else was written
        np.testing.assert_array_equal(np.delete(after, length, axis=1), np.delete(own, length, axis=1))
    all_keys = torch.cat([double(before[0])[:, :length], key[:, None]], dim=1)
    all_values = torch.cat([double(before[1])[:, :length], value[:, None]], dim=1)
    expected = functional.scaled_dot_product_attention(
        query[None, :, None], all_keys[None], all_values[None], scale=size**-0.5, enable_gqa=True
    )
    np.testing.assert_allclose(out, expected.reshape(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    """The step that sends a row refuses such numbers, so they must reach it."""
    keys, kept, out = values(1, 3, 4), values(1, 3, 4), np.zeros(4, F32)
    qkv = values(12)
    qkv[1] = bad
    attend_row(qkv, NONE, NONE, keys, kept, 2, 1.0, out)
    assert not np.isfinite(out).any()
    x, after = np.array([1, bad], F32), np.zeros(2, F32)
    norm_row(x, x, NONE, 0.0, 1e-5, False, after)
    assert not np.isfinite(after).all()
    activate_row(x, SILU, False, after)
    assert not np.isfinite(after).all()
