"""The stand-ins of remote modules: what they take for a layer, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from veil import HybridFHEModel, noise
from veil.bundle.constants import row_norms, target_norm
from veil.compile.quantize import quantize_weight
from veil.params import Params

TINY = Params.insecure_tiny()


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Transposed(nn.Linear):
    """Another way to compute the same, as Falcon has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(ids)


def test_a_layer_that_computes_more_is_refused() -> None:
    hybrid = HybridFHEModel(nn.Sequential(Doubled(8, 4)), "0")
    with pytest.raises(ValueError, match="0: a Doubled computes more than a linear layer; leave it out"):
        hybrid.compile_model(torch.ones(1, 8), params=TINY)


def test_a_linear_layer_of_another_class_is_taken() -> None:
    hybrid = HybridFHEModel(nn.Sequential(Transposed(8, 4)), "0")
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    hybrid.compile_model(x, params=TINY)
    torch.testing.assert_close(hybrid(x, fhe="disable"), hybrid(x, fhe="torch"), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_embedding_is_what_it_answers_in_its_own_type(dtype: torch.dtype) -> None:
    hybrid = HybridFHEModel(nn.Sequential(Scaled(9, 6)).to(dtype), "0")
    ids = torch.tensor([[0, 8, 3]])
    hybrid.compile_model(ids, params=TINY)
    for mode in ("disable", "execute"):
        out = hybrid(ids, fhe=mode)
        assert out.dtype == dtype
        torch.testing.assert_close(out, hybrid(ids, fhe="torch"), atol=0.1, rtol=0.05)


def test_two_embeddings_with_one_table_are_one_layer() -> None:
    first, second = nn.Embedding(9, 6), nn.Embedding(9, 6)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "b": second, "c": nn.Embedding(9, 6)})
    hybrid = HybridFHEModel(model, ["a", "b", "c"])
    assert hybrid.module_names == ["a", "c"]
    assert model["b"] is model["a"]


def test_a_weight_that_is_used_without_its_layer_is_named() -> None:
    """nn.MultiheadAttention multiplies with its output projection's weight itself, so nothing would be remote."""
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    hybrid = HybridFHEModel(model, "out_proj")
    x = torch.ones(1, 3, 8)
    with pytest.raises(ValueError, match="uses the weight of 'out_proj' without calling it; leave it out"):
        hybrid.compile_model({"query": x, "key": x, "value": x}, params=TINY)


def test_every_shape_with_the_real_parameters() -> None:
    """Narrower than anything, wider than the inner degree, more outputs than a block has slots, odd, without a bias."""
    shapes = [(1, 1), (3, 7), (2501, 5), (5, 4999), (1024, 2), (1025, 3)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.ModuleDict({f"{i}x{o}": nn.Linear(i, o, bias=o % 2 == 0) for i, o in shapes})
        inputs = {f"{i}x{o}": torch.randn(2, i) for i, o in shapes}
    model.forward = lambda **x: {name: layer(x[name]) for name, layer in model.items()}
    hybrid = HybridFHEModel(model, list(model))
    hybrid.compile_model(inputs)
    with torch.no_grad():
        exact, clear, out = (hybrid(**inputs, fhe=mode) for mode in ("torch", "disable", "execute"))
    for name, layer in model.items():
        assert isinstance(layer, nn.Linear)
        assert (clear[name] - exact[name]).abs().max() < 0.02 * exact[name].abs().max()
        assert ((out[name] - clear[name]).abs() < _bound(layer, inputs[name], hybrid.params)).all(), name


def _bound(layer: nn.Linear, x: torch.Tensor, params: Params) -> torch.Tensor:
    """6.5 predicted standard deviations of the encrypted outputs for rows x, and float32's own rounding."""
    weights, scale = quantize_weight(layer.weight.detach().numpy(), 8)
    norms = row_norms(weights)
    tau = target_norm(params, norms.max()) / np.linalg.norm(x.numpy(), axis=1)
    bits = noise.wire_bits(params, layer.in_features, layer.out_features, norms.max())
    return torch.from_numpy(6.5 * np.sqrt(noise.result(params, norms, bits)) * scale / tau[:, None] + 1e-6)
