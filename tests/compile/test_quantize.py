"""Integer weights of 2 to 8 bits, and rows that fill the modulus and never wrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.bundle.constants import row_norms, target_norm
from veil.compile.quantize import GROUP, quantize_weight
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Rows, Scaling
from veil.params import Params

PARAMS = Params.default()


def test_eight_bits_are_symmetric_and_rounded_to_the_nearest() -> None:
    weight = np.random.default_rng(8).standard_normal((20, 31)).astype(np.float32)
    quantized, scale = quantize_weight(weight, 8)
    assert quantized.dtype == np.int8
    assert (abs(quantized.astype(int)).max(axis=1) == 127).all()
    np.testing.assert_allclose(scale, abs(weight).max(axis=1) / 127, rtol=1e-6)
    error = abs(quantized * scale[:, None].astype(np.float64) - weight)
    assert (error <= scale[:, None] * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("width", [1, 31, 32, 77])
def test_fewer_bits_take_that_many_values_in_each_group(bits: int, width: int) -> None:
    weight = np.random.default_rng(bits).standard_normal((20, width)).astype(np.float32)
    quantized, scale = quantize_weight(weight, bits)
    assert quantized.shape == weight.shape
    for start in range(0, width, GROUP):
        own, exact = quantized[:, start : start + GROUP], weight[:, start : start + GROUP]
        assert max(len(set(row)) for row in own.tolist()) <= 2**bits
        step = (exact.max(axis=1) - exact.min(axis=1)) / (2**bits - 1)
        error = abs(own * scale[:, None].astype(np.float64) - exact)
        assert (error <= (0.5 * step + 0.5 * scale)[:, None] * (1 + 1e-4)).all()


def test_rows_of_zeros_have_no_scale() -> None:
    quantized, scale = quantize_weight(np.array([[0, 0], [1, -2]], dtype=np.float32), 8)
    assert quantized.tolist() == [[0, 0], [64, -127]]
    assert scale[0] == 0
    assert quantize_weight(np.zeros((0, 3), dtype=np.float32), 8)[0].shape == (0, 3)


def test_tiny_and_huge_weights() -> None:
    weight = np.array([[1e-38, -1e-38], [3e38, -3e38], [1e-45, 0]], dtype=np.float32)
    quantized, scale = quantize_weight(weight, 8)
    assert quantized[:2].tolist() == [[127, -127], [127, -127]]
    assert np.isfinite(scale).all()
    assert abs(quantized.astype(int)).max() <= 127


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 32])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"n_bits is {bits}, expected 2 to 8"):
        quantize_weight(np.ones((1, 1), dtype=np.float32), bits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(np.array([[1.0, bad]], dtype=np.float32), 8)


def test_row_norms_are_exact_integers_under_a_root() -> None:
    weights = np.full((2, 8192), -127, dtype=np.int8)
    weights[1] = 0
    assert row_norms(weights).tolist() == [np.sqrt(8192 * 127**2), 0.0]


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 300), st.sampled_from([1e-30, 1.0, 1e30]))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_the_result_never_wraps(seed: int, out: int, width: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.integers(-127, 128, (out, width), dtype=np.int8)
    x = (draw.standard_normal((3, width)) * size).astype(np.float32)
    norms = row_norms(weights)
    x[0] = weights[norms.argmax()] * np.float32(size)
    kernels, unit = kernels_for("cpu"), np.ones(out, dtype=np.float32)
    scaling = Scaling(None, unit, 0 * unit, target_norm(PARAMS, norms.max()), 0.0)
    nothing = [Rows(kernels.zeros(3, max(width, out)), 0, 3)]
    data, _ = kernels.encrypt(x, scaling, nothing, 0, 32)
    exact = data.view(np.int32).astype(object) @ weights.T.astype(object)
    assert abs(exact).max() < 2**31
    (loaded,) = kernels.load_weights([weights])
    assert (kernels.answer(data, loaded, nothing, 0, (32, 32)).view(np.int32) == exact).all()
    if norms.max() > 127:
        assert abs(exact[0]).max() > 0.97 * 2**31, "the worst input fills the modulus"


def test_the_target_follows_the_headroom() -> None:
    assert target_norm(PARAMS, 100.0) == 0.99 * 2**31 / 100
    assert target_norm(Params.insecure_tiny(headroom=0.5), 100.0) == 0.5 * 2**31 / 100
    assert target_norm(PARAMS, 0.0) == 0.99 * 2**31
