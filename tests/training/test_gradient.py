"""Gradients through remote layers: right in every mode, asked for only where they are wanted, each row once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from veil import HybridFHEModel
from veil.bundle.manifest import Manifest
from veil.bundle.terms import Terms
from veil.errors import BundleError, RemoteWeightError
from veil.params import Params

IDS = torch.tensor([[1, 7, 9, 30, 41, 12, 3, 5, 22], [1, 8, 50, 31, 11, 60, 6, 15, 33]])
WEAK = Terms(no_cryptography=True)


def parts_of(hybrid: HybridFHEModel) -> Any:
    """What compiling made, weights included."""
    assert hybrid.sides.compiled is not None and hybrid.sides.compiled.weights is not None
    return hybrid.sides.compiled


def first_weight(hybrid: HybridFHEModel) -> torch.Tensor:
    """The first layer's own weight, under its stand-in."""
    layer: Any = hybrid.model.get_submodule("0")
    weight: torch.Tensor = layer.inner.weight
    return weight


def gradient_of(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


def compiled(model: nn.Module, names: list[str], x: torch.Tensor, **options: Any) -> HybridFHEModel:
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(x, device="cpu", params=Params.insecure_tiny(), trainable=True, **options)
    hybrid.set_fhe_mode("disable")
    return hybrid


def asked(hybrid: HybridFHEModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(group, rows) of every evaluation from now on."""
    assert hybrid.sides.router is not None and hybrid.sides.router.evaluator is not None
    seen, evaluator = [], hybrid.sides.router.evaluator
    evaluate = evaluator.evaluate

    def noted(group: int, x: Any, slots: int | None = None) -> Any:
        seen.append((group, len(x)))
        return evaluate(group, x, slots)

    monkeypatch.setattr(evaluator, "evaluate", noted)
    return seen


@pytest.mark.parametrize("kind", ["plain", "calibrated"])
def test_a_gradient_is_that_of_the_integer_layer(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(40 if kind == "calibrated" else 3, 24) * torch.linspace(0.1, 8, 24)
    hybrid = compiled(nn.Sequential(nn.Linear(24, 10)), ["0"], x)
    compiled_parts = parts_of(hybrid)
    own, weights = compiled_parts.constants[1], compiled_parts.weights[1]
    assert (compiled_parts.constants[0].divisors is not None) == (kind == "calibrated")
    integer = (own.scale[:, None] * weights).T
    exact = first_weight(hybrid).detach().numpy()
    assert np.abs(integer - exact).max() <= 0.51 * np.abs(exact).max() / 127, "rounded for gradients, not for activations"
    given, wanted = x.clone().requires_grad_(), torch.randn(len(x), 10)
    hybrid.model(given).backward(wanted)
    expected = wanted.numpy() @ integer
    assert np.abs(gradient_of(given).numpy() - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_are_those_of_the_float_model(name: str, twins: Any) -> None:
    pair = twins(name=name)
    for mode in ("torch", "disable", "simulate", "execute"):
        pair.hybrid.set_fhe_mode(mode)
        found = {name: value for name, value in pair.cosines().items() if "wte" not in name}  # the tied head does not train
        assert min(found.values()) > (0.9999 if mode == "torch" else 0.99)
        assert np.median(list(found.values())) > 0.999
    pair.hybrid.close()


def test_a_layer_whose_input_needs_no_gradient_sends_nothing(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = twins()
    pair.hybrid.set_fhe_mode("disable")
    for parameter in pair.model.parameters():
        parameter.requires_grad_(False)
    norm = pair.model.get_submodule("model.layers.1.post_attention_layernorm")
    norm.weight.requires_grad_(True)
    seen = asked(pair.hybrid, monkeypatch)
    pair.gradients(pair.model)
    manifest = pair.hybrid.manifest
    names = [manifest.groups[group].layers[0].name for group, _ in seen if manifest.groups[group].segment == "back"]
    wanted = ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj"]
    assert names == [f"{name}.transposed" for name in wanted], "nothing from below the lowest that trains"
    with torch.no_grad():
        pair.model(IDS)
    assert len(seen) == 2 * len(manifest.forward) + 3


def test_a_group_of_several_layers_asks_for_one_gradient(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = twins()
    seen = asked(pair.hybrid, monkeypatch)
    pair.gradients(pair.model)
    assert sorted(group for group, _ in seen) == list(range(len(pair.hybrid.manifest.groups)))
    assert {rows for _, rows in seen} == {IDS.numel()}


def test_recomputed_layers_take_fresh_rows(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = twins()
    hybrid = pair.hybrid
    plain = pair.gradients(pair.float_model)
    hybrid.set_fhe_mode("execute")
    spent: set[tuple[int, int, int]] = set()
    admission = hybrid.sides.local.transport.admission
    claim = admission.claim

    def noted(session: Any, group: int, spans: Any, data: Any, slots: int, **options: Any) -> Any:
        rows = {(group, span.batch, row) for span in spans for row in range(span.first, span.first + span.count)}
        assert not rows & spent
        spent.update(rows)
        return claim(session, group, spans, data, slots, **options)

    monkeypatch.setattr(admission, "claim", noted)
    pair.model.train()
    pair.model.activation_checkpointing_enable()
    again = pair.gradients(pair.model)
    assert min(nn.functional.cosine_similarity(again[n].flatten(), plain[n].flatten(), 0) for n in again) > 0.99
    queries = sum(1 for group, _, _ in spent if hybrid.manifest.groups[group].layers[0].name.endswith("0.self_attn.q_proj"))
    assert queries == 2 * IDS.numel()
    hybrid.close()


def test_rows_for_gradients_can_be_ready(twins: Any) -> None:
    pair = twins()
    pair.hybrid.set_fhe_mode("execute")
    pair.hybrid.reserve(rows_full=IDS.numel(), rows_back=IDS.numel())
    ready = pair.hybrid.rows_ready
    assert ready.back >= IDS.numel() <= ready.tokens
    made = pair.hybrid.stats.rows_made
    pair.gradients(pair.model)
    assert pair.hybrid.stats.rows_made == made, "no row was missing"
    assert pair.hybrid.rows_ready.back < ready.back
    pair.hybrid.close()


def test_a_gradient_that_overflowed_comes_back_as_nan() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    hybrid = compiled(nn.Sequential(nn.Linear(8, 4)), ["0"], x.detach())
    wanted = torch.ones(3, 4)
    wanted[1, 2] = torch.inf
    hybrid.model(x).backward(wanted)
    assert gradient_of(x)[1].isnan().all() and gradient_of(x)[[0, 2]].isfinite().all() and gradient_of(x)[0].any()


def test_gradients_keep_the_precision_of_each_row() -> None:
    torch.manual_seed(1)
    x, wanted = torch.randn(4, 64, requires_grad=True), torch.randn(4, 48)
    hybrid = compiled(nn.Sequential(nn.Linear(64, 48)), ["0"], x.detach())
    hybrid.set_fhe_mode("execute")
    sizes = torch.tensor([1.0, 1e-9, 1e6, 0.0])[:, None]
    hybrid.model(x).backward(wanted * sizes)
    exact = (wanted * sizes) @ first_weight(hybrid)
    error = (gradient_of(x) - exact).norm(dim=1)[:3] / exact.norm(dim=1)[:3]
    assert error.max() < 0.015 and not gradient_of(x)[3].any()
    hybrid.close()


def test_the_errors_of_gradients_are_unbiased_and_as_predicted() -> None:
    """The mean of 64 gradients, for every one of 64 inputs, within 5 deviations of the predicted noise over 8."""
    from veil import noise
    from veil.bundle.constants import row_norms

    torch.manual_seed(2)
    x, wanted = torch.randn(64, 64, requires_grad=True), torch.randn(48).expand(64, 48)
    hybrid = compiled(nn.Sequential(nn.Linear(64, 48)), ["0"], x.detach())
    hybrid.model(x).backward(wanted)
    exact, x.grad = gradient_of(x), None
    hybrid.set_fhe_mode("execute")
    hybrid.model(x).backward(wanted)
    errors = (gradient_of(x) - exact).double().numpy()
    group, own = hybrid.manifest.groups[1], parts_of(hybrid).constants[1]
    bits = noise.WireBits(group.input_bits, group.result_bits)
    variance = noise.result(hybrid.params, row_norms(parts_of(hybrid).weights[1]), bits)
    from veil.bundle.constants import target_norm

    tau = target_norm(hybrid.params, own.bound) / np.linalg.norm(wanted[0].numpy())
    sigma = np.sqrt(variance) / tau * own.scale
    assert np.abs(errors.mean(axis=0) / (sigma / 8)).max() < 5
    ratio = (errors**2).mean() / (sigma**2).mean()
    assert abs(ratio - 1) < 5 * np.sqrt(2 / errors.size)
    hybrid.close()


def test_where_rounding_has_a_mean_that_counts_words_go_up_whole() -> None:
    from veil.compile.transposed import unbiased
    from veil.noise import WireBits

    mixed = np.random.default_rng(0).integers(-100, 101, (4, 40_000), dtype=np.int8)
    assert unbiased(WireBits(31, 18), mixed, Params.default()) == (31, 18)
    assert unbiased(WireBits(31, 18), np.abs(mixed), Params.default()) == (32, 18)
    assert unbiased(WireBits(20, 18), np.abs(mixed), Params.default()) == (20, 18), "the rounding's spread is larger there"


def test_a_bundle_for_training_is_opened_again(twins: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pair = twins()
    expected = pair.gradients(pair.model)
    pair.hybrid.save(tmp_path / "b", tokenizer=tiny_tokenizer)
    opened = HybridFHEModel.load(tmp_path / "b", device="cpu", terms=WEAK)
    assert opened.is_trainable and opened.manifest == pair.hybrid.manifest
    names = set(expected)
    for name, parameter in opened.model.named_parameters():
        parameter.requires_grad_(name in names)
    found = pair.gradients(opened.model)
    assert set(found) == names and all(torch.equal(found[name], expected[name]) for name in names)
    from safetensors import safe_open

    with safe_open(tmp_path / "b" / "server" / "weights.safetensors", "np") as file:
        assert len(list(file.keys())) == len(opened.manifest.groups)


def test_fused_norms_and_training_do_not_go_together(tiny_llama: Any) -> None:
    hybrid = HybridFHEModel(tiny_llama, "lm_head")
    with pytest.raises(ValueError, match="fused norms cannot be trained through"):
        hybrid.compile_model(IDS, trainable=True, fuse_norms="on")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transposed": 7}, "no group before it"),
        ({"transposed": True}, "no group before it"),
        ({"segment": "body"}, "transposes 0"),
        ({"transposed": None}, "transposes None"),
        ({"in_features": 5}, "is not the transpose"),
    ],
)
def test_a_transposed_group_that_is_none_is_refused(change: dict[str, Any], words: str, twins: Any) -> None:
    hybrid = compiled(nn.Sequential(nn.Linear(6, 4)), ["0"], torch.randn(2, 6))
    groups: Any = hybrid.manifest.to_json()
    layer = {name: value for name, value in change.items() if name == "in_features"}
    groups[1]["layers"][0].update(layer)
    groups[1].update({name: value for name, value in change.items() if name not in layer})
    with pytest.raises(BundleError, match=words):
        Manifest.from_json(groups)


def test_training_through_a_model_that_was_not_compiled_for_it_gives_no_gradient(tiny_llama: Any) -> None:
    hybrid = HybridFHEModel(tiny_llama, "lm_head")
    hybrid.compile_model(IDS, params=Params.insecure_tiny(), device="cpu")
    hybrid.set_fhe_mode("disable")
    assert not hybrid.model(IDS, labels=IDS).loss.requires_grad


def test_a_remote_weight_is_never_written(twins: Any) -> None:
    layer = twins().hybrid.model.lm_head
    assert torch.equal(torch.linalg.norm(layer.weight, dim=1), layer.inner.weight.norm(dim=1))
    before = layer.inner.weight.clone()
    for write in (
        lambda weight: weight.data.__iadd__(1.0),
        lambda weight: weight.data.mul_(2.0),
        lambda weight: setattr(weight, "data", before * 2),
        lambda weight: weight.data.__setitem__(0, 0.0),
    ):
        with pytest.raises(RemoteWeightError, match="nothing can be merged into it"):
            write(layer.weight)
    assert torch.equal(layer.inner.weight, before)


def test_gradients_over_a_network(twins: Any, tmp_path: Path, tiny_tokenizer: Any, train_server: Callable[..., Any]) -> None:
    pair = twins()
    expected = pair.gradients(pair.model)
    pair.hybrid.save(tmp_path / "b", tokenizer=tiny_tokenizer)
    with train_server(tmp_path / "b") as connect:
        remote = connect()
        for name, parameter in remote.model.named_parameters():
            parameter.requires_grad_(name in expected)
        for _ in range(2):
            found = pair.gradients(remote.model)
        assert set(found) == set(expected)
        assert min(nn.functional.cosine_similarity(found[n].flatten(), expected[n].flatten(), 0) for n in found) > 0.995
        assert remote.stats.trips == 2 * len(remote.manifest.groups)
        remote.close()
