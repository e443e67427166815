"""Divisors and corrections of the biases: right on small cases, never worse than plain rounding, kept by a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from veil import HybridFHEModel
from veil.bundle.client_half import REMOTE
from veil.bundle.constants import GroupConstants
from veil.bundle.terms import Terms
from veil.compile.balance import LEAST_ROWS, Inputs, balanced, bias_correction, divisors_for
from veil.compile.quantize import quantize_weight, rounded
from veil.errors import BundleError
from veil.params import Params
from veil.runtime import saved_model

TINY = Params.insecure_tiny()
WEAK = Terms(no_cryptography=True)


def constants_of(hybrid: HybridFHEModel) -> tuple[GroupConstants, ...]:
    assert hybrid.sides.compiled is not None
    return hybrid.sides.compiled.constants


def uneven(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Activations whose channels differ and have means, a few by far."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, width)) * np.exp(draw.standard_normal(width)) + 2 * draw.standard_normal(width)
    x[:, : width // 16] *= 30
    return x.astype(np.float32)


def gaussian(rows: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def error(weight: np.ndarray, x: np.ndarray, bits: int, inputs: Inputs | None, divisors: np.ndarray | None) -> float:
    """Squared error of the outputs on x, with the correction where there are ``inputs``."""
    quantized, scale = quantize_weight(weight, bits, divisors)
    made = quantized.astype(np.float64) * scale[:, None] / (1 if divisors is None else divisors)
    lost = x.astype(np.float64) @ (weight - made).T
    if inputs is not None:
        lost = lost - bias_correction(weight, quantized, scale, inputs, divisors)
    return float(np.square(lost).sum())


def inputs_of(x: np.ndarray) -> Inputs:
    found = Inputs.of(x)
    assert found is not None
    return found


# The rounding, by hand ------------------------------------------------------------------------------------------------


def test_the_integers_follow_from_weight_divisors_and_scales() -> None:
    weight = np.array([[1.0, -0.3, 0.02], [0.5, 0.25, -0.75]], dtype=np.float32)
    divisors, scale = np.array([0.5, 2.0, 8.0], dtype=np.float32), np.array([0.005, 0.1], dtype=np.float32)
    assert rounded(weight, 8, scale, divisors).tolist() == [[100, -120, 32], [2, 5, -60]], "2.5 goes to 2: halves to even"
    half = scale / np.float32(2)
    assert rounded(weight, 8, half, divisors).tolist() == [[127, -127, 64], [5, 10, -120]], "a small step clips"
    assert rounded(weight, 8, np.zeros(2, np.float32)).tolist() == [[1, 0, 0], [0, 0, -1]]


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_anyone_gets_the_same_integers_one_by_one(bits: int) -> None:
    weight = gaussian(5, 40)
    divisors = np.exp(gaussian(1, 40, 2)[0])
    quantized, scale = quantize_weight(weight, bits, divisors)
    assert (rounded(weight, bits, scale, divisors) == quantized).all()
    assert (rounded(np.asfortranarray(weight), bits, scale.copy(), divisors) == quantized).all()
    if bits == 8:
        one = [
            [int(np.rint(weight[j, i] * divisors[i] / scale[j])) for i in range(weight.shape[1])] for j in range(len(weight))
        ]
        assert quantized.tolist() == one
    np.testing.assert_array_equal(scale, (abs(weight * divisors).max(axis=1) / 127).astype(np.float32))


# The search -----------------------------------------------------------------------------------------------------------


def test_one_row_is_made_even() -> None:
    """With one row of weights ``max (w·s)² · Σ 1/s²`` is least where every w·s is the maximum: Σ w², not n·max w²."""
    weight = np.array([[4.0, 1.0, 0.5, 2.0]], dtype=np.float32)
    found = balanced(weight, np.ones(4, dtype=np.float32))
    value = (weight[0] * found).max() ** 2 * (1 / found**2).sum()
    assert 21.25 <= value < 1.1 * 21.25
    assert np.exp(np.log(found).mean()) == pytest.approx(1, rel=1e-4)


def test_separate_columns_share_the_burden() -> None:
    """A diagonal matrix: Σ w²s² · Σ e/s² is least at s² = √e / w, where it is (Σ w·√e)²."""
    diagonal, energy = np.array([1.0, 3.0, 0.2]), np.array([1.0, 0.1, 0.5])
    found = balanced(np.diag(diagonal).astype(np.float32), energy.astype(np.float32)).astype(np.float64)
    value = (diagonal**2 * found**2).sum() * (energy / found**2).sum()
    assert value == pytest.approx((diagonal * np.sqrt(energy)).sum() ** 2, rel=0.02)
    assert value < 0.9 * (diagonal**2).sum() * energy.sum()


def test_large_inputs_cost_less_afterwards() -> None:
    weight, (seen, new) = gaussian(64, 128), np.split(uneven(512, 128), 2)
    inputs = inputs_of(seen)
    divisors = divisors_for([(weight, 8)], inputs, Params.default())
    assert divisors is not None
    assert error(weight, new, 8, inputs, divisors) < 0.35 * error(weight, new, 8, None, None)


def test_the_bias_takes_what_is_lost_at_the_mean() -> None:
    weight = gaussian(20, 32)
    x = np.tile(gaussian(1, 32, 3), (40, 1)) + 1e-3 * gaussian(40, 32, 4)
    quantized, scale = quantize_weight(weight, 8)
    lost = (weight - quantized * scale[:, None]).astype(np.float64) @ x.mean(axis=0)
    np.testing.assert_allclose(bias_correction(weight, quantized, scale, inputs_of(x), None), lost, atol=1e-4)
    assert error(weight, x, 8, inputs_of(x), None) < 1e-3 * error(weight, x, 8, None, None)


def test_one_long_row_is_not_taken_for_a_mean() -> None:
    x = np.zeros((100, 8), dtype=np.float32)
    x[0] = 1000.0
    assert np.allclose(inputs_of(x).mean, 10)
    assert np.allclose(inputs_of(x).certain_mean, 0, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("kind", ["uneven", "few", "gaussian", "one channel", "equal rows"])
def test_never_worse_than_plain_on_the_calibration(kind: str, bits: int) -> None:
    rows = LEAST_ROWS if kind == "few" else 100
    for seed in range(3):
        x = gaussian(rows, 70, seed) if kind == "gaussian" else uneven(rows, 70, seed)
        if kind == "one channel":
            x[:, 1:] = 0
        if kind == "equal rows":
            x[:] = x[0]
        weight, inputs = gaussian(48, 70, seed + 9), inputs_of(x)
        weight[3] = 0
        divisors = divisors_for([(weight, bits)], inputs, TINY)
        assert error(weight, x, bits, inputs, divisors) <= error(weight, x, bits, None, None) * (1 + 1e-6)


@pytest.mark.parametrize("width", [2048, 2560])
def test_wide_gaussian_layers_are_no_worse_on_new_rows(width: int) -> None:
    weight, seen, new = gaussian(96, width), gaussian(256, width, 2), gaussian(128, width, 3)
    inputs = inputs_of(seen)
    divisors = divisors_for([(weight, 8)], inputs, Params.default())
    assert error(weight, new, 8, inputs, divisors) <= 1.01 * error(weight, new, 8, None, None)


def test_calibration_that_says_nothing() -> None:
    assert Inputs.of(None) is None
    assert Inputs.of(np.zeros((100, 4), dtype=np.float32)) is None
    assert Inputs.of(np.ones((LEAST_ROWS - 1, 4), dtype=np.float32)) is None
    assert Inputs.of(np.full((100, 4), np.nan, dtype=np.float32)) is None
    x = inputs_of(uneven(32, 8))
    assert divisors_for([(np.zeros((3, 8), np.float32), 8)], x, TINY) is None
    assert divisors_for([(np.zeros((0, 8), np.float32), 8)], x, TINY) is None


# In a model -----------------------------------------------------------------------------------------------------------


def compiled(x: torch.Tensor, kind: str = "linear", **settings: Any) -> tuple[HybridFHEModel, torch.Tensor]:
    layer = Conv1D(24, x.shape[-1]) if kind == "conv1d" else nn.Linear(x.shape[-1], 24)
    layer.weight.data = torch.from_numpy(gaussian(*layer.weight.shape))
    layer.bias.data = torch.from_numpy(gaussian(1, 24, 5)[0])
    hybrid = HybridFHEModel(nn.Sequential(layer), "0")
    before = layer.bias.detach().clone()
    hybrid.compile_model(x, params=TINY, **settings)
    assert torch.equal(layer.bias, before), "the float model keeps its bias"
    return hybrid, hybrid(x, fhe="torch")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_layer_loses_less_in_every_mode(kind: str, bits: int) -> None:
    x = torch.from_numpy(uneven(64, 96)).reshape(4, 16, 96)
    hybrid, exact = compiled(x, kind, n_bits=bits)
    constants = constants_of(hybrid)[0]
    assert constants.divisors is not None
    assert constants.divisors.dtype == np.float32
    inner = hybrid.remote_modules["0"].inner
    assert inner is not None
    plain = HybridFHEModel(nn.Sequential(inner), "0")
    plain.compile_model(x[:1, :4], n_bits=bits, params=TINY)
    assert constants_of(plain)[0].divisors is None
    for mode in ("disable", "simulate", "execute"):
        better, worse = ((h(x, fhe=mode) - exact).square().sum() for h in (hybrid, plain))
        assert better < 0.6 * worse, mode


def test_a_fixed_scale_is_that_of_the_divided_rows() -> None:
    x = torch.from_numpy(uneven(64, 96))
    hybrid, exact = compiled(x, use_dynamic_quantization=False)
    constants = constants_of(hybrid)[0]
    divided = np.linalg.norm(x.numpy() / constants.divisors, axis=1)
    assert constants.fixed_norm == pytest.approx(float(divided.max()), rel=1e-5)
    assert (hybrid(x, fhe="disable") - exact).abs().max() < 0.02 * exact.abs().max()


def test_more_rows_than_are_kept_count_for_the_fixed_scale() -> None:
    x = torch.from_numpy(uneven(2000, 32))
    x[777] *= 40
    hybrid, exact = compiled(x, use_dynamic_quantization=False)
    assert (hybrid(x, fhe="disable") - exact)[777].abs().max() < 0.02 * exact[777].abs().max(), "it is not clipped"


def test_an_embedding_has_no_divisors() -> None:
    table = nn.Embedding(20, 10)
    hybrid = HybridFHEModel(nn.Sequential(table), ["0"])
    hybrid.compile_model(torch.arange(20)[None], params=TINY)
    assert constants_of(hybrid)[0].divisors is None


@pytest.fixture
def saved(new_model: Callable[[str], Any], tmp_path: Path) -> tuple[HybridFHEModel, Path]:
    hybrid = HybridFHEModel(new_model("llama"), ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "lm_head"])
    hybrid.compile_model(torch.arange(48)[None], params=TINY)
    hybrid.save(tmp_path / "made")
    return hybrid, tmp_path / "made"


def test_the_client_half_keeps_divisors_and_corrections(saved: tuple[HybridFHEModel, Path]) -> None:
    hybrid, path = saved
    here = constants_of(hybrid)
    assert any(group.divisors is not None for group in here)
    opened = saved_model.load_client(path / "client", WEAK).compiled.constants
    for mine, theirs in zip(here, opened, strict=True):
        assert (mine.divisors is None) == (theirs.divisors is None)
        if mine.divisors is not None:
            np.testing.assert_array_equal(mine.divisors, theirs.divisors)
        np.testing.assert_array_equal(mine.bias, theirs.bias)
    ids = torch.tensor([[5, 9, 33]])
    assert torch.equal(HybridFHEModel.load(path, terms=WEAK)(ids).logits, hybrid(ids, fhe="disable").logits)
    assert sorted(load_file(path / "server" / "weights.safetensors")) == ["group.0", "group.1"], "the server gets none"


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_divisor_that_is_not_positive_is_refused(saved: tuple[HybridFHEModel, Path], bad: float) -> None:
    _, path = saved
    file = path / "client" / REMOTE
    arrays = load_file(file)
    name = next(name for name in arrays if name.startswith("divisors."))
    arrays[name][0] = bad
    save_file(arrays, file)
    with pytest.raises(BundleError, match="divides its inputs by something that is not positive"):
        saved_model.load(path, WEAK, verify=False)
