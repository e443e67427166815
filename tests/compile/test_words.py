"""Weights of two words: what they lose, which groups get them, and that nothing else of a group changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from veil import HybridFHEModel, linear_modules
from veil.bundle.constants import row_norms
from veil.bundle.manifest import Group, Layer, Manifest
from veil.compile.quantize import quantize_weight
from veil.compile.words import STEPS, back_words, by_output, forward_words, two_words
from veil.errors import BundleError
from veil.params import Params
from veil.report.layers import layer_quality

IDS = torch.tensor([[1, 7, 9, 30, 41, 12, 3, 5, 22]])


def group(width: int, *outputs: int, segment: str = "body", bits: int = 8, kind: Any = "linear") -> Group:
    layers = tuple(Layer(f"layer{number}", kind, width, size, bits, False) for number, size in enumerate(outputs))
    return Group(layers, segment)


@pytest.mark.parametrize("divided", [False, True])
def test_two_words_lose_a_sixtieth_of_what_one_loses(divided: bool) -> None:
    draw = np.random.default_rng(1)
    weight = draw.standard_normal((7, 200)).astype(np.float32)
    weight[3] = 0.0
    divisors = np.exp(draw.standard_normal(200)).astype(np.float32) if divided else None
    first, scale = quantize_weight(weight, 8, divisors)
    integers, scales = two_words(weight, first, scale, divisors)
    assert integers.shape == (14, 200) and np.array_equal(integers[::2], first) and np.array_equal(scales[::2], scale)
    assert np.abs(integers[1::2]).max() == STEPS // 2 and not integers[6:8].any()
    values = weight if divisors is None else weight * divisors
    lost = np.abs(values - (integers * scales[:, None])[::2] - (integers * scales[:, None])[1::2])
    assert (lost <= 1.001 * scale[:, None] / (2 * STEPS)).all()
    assert row_norms(integers[1::2]).max() < row_norms(first).max(), "inputs are scaled for the first words"


def test_words_of_an_output_are_next_to_each_other() -> None:
    assert by_output(np.array([1, 2]), np.array([10, 20])).tolist() == [1, 10, 2, 20]
    two = Group(group(4, 3).layers, "body", words=2)
    assert (two.outputs, two.rows, two.prompt_rows) == (3, 6, 6)
    assert two.whole(np.arange(12).reshape(2, 6)).tolist() == [[1, 5, 9], [13, 17, 21]]
    assert two.whole(torch.arange(4).reshape(1, 4)).tolist() == [[1, 5]], "the first slots alone"


def test_which_groups_get_a_second_word() -> None:
    assert forward_words(group(8, 8, 4, 4)) == 2, "queries, keys and values"
    assert forward_words(group(24, 8)) == 2, "back into the stream"
    assert forward_words(group(8, 16, 16)) == 1, "what widens a row"
    assert forward_words(group(8, 8, segment="head")) == forward_words(group(8, 8, bits=4)) == 1
    assert forward_words(group(8, 8, kind="embedding")) == 1
    assert (back_words(group(8, 90, segment="head")), back_words(group(8, 8))) == (2, 1)


@pytest.mark.parametrize("words", [0, 3, True, "2"])
def test_other_numbers_of_words_are_refused(words: Any) -> None:
    fields: Any = Manifest((Group(group(4, 3).layers, "body", words=2),)).to_json()
    assert Manifest.from_json(fields).groups[0].words == 2
    fields[0]["words"] = words
    with pytest.raises(BundleError, match=r"weights of .* words, expected 1, or 2"):
        Manifest.from_json(fields)


def test_a_layer_of_two_words_is_nearer_to_the_float_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 64) * torch.exp(torch.randn(64))
    found = {}
    for trainable in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 48))
        exact = model(x).detach()
        hybrid = HybridFHEModel(model, ["0"])
        hybrid.compile_model(x, device="cpu", params=Params.insecure_tiny(), trainable=trainable)
        assert hybrid.manifest.groups[0].words == 1 + trainable
        for mode in ("disable", "execute"):
            hybrid.set_fhe_mode(mode)
            with torch.no_grad():
                error = hybrid.model(x) - exact
            found[trainable, mode] = float(error.norm() / exact.norm())
        hybrid.close()
    assert found[True, "disable"] < found[False, "disable"] / 20
    assert found[True, "execute"] < 0.8 * found[False, "execute"], "what is left is the noise"


def test_prompts_and_reports_of_a_model_with_two_words(new_model: Any) -> None:
    """Prompt rows ask for the first slots of a group only; reports add the words up as the router does."""
    model = new_model("llama")
    hybrid = HybridFHEModel(model, linear_modules(model))
    hybrid.compile_model(torch.arange(1, 25).reshape(2, 12), device="cpu", params=Params.insecure_tiny(), trainable=True)
    last = [g for g in hybrid.manifest.forward if g.words == 2 and g.layers[-1].last_row and g.prompt_rows]
    assert last, "the last layer's keys and values"
    hybrid.set_fhe_mode("disable")
    with torch.no_grad():
        whole, one = hybrid.model(IDS).logits[:, -1], hybrid.model(IDS, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(one, whole)
    found = {layer.name: layer for layer in layer_quality(hybrid, IDS, "simulate")}
    assert len(found) == sum(len(g.layers) for g in hybrid.manifest.forward)
    assert all(0.5 < layer.ratio < 2 for layer in found.values())
    hybrid.close()
