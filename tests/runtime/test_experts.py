"""Mixtures of experts: the same answers as the float module, and what the server sees of the routing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from comparing import decibels
from veil import HybridFHEModel, linear_modules
from veil.bundle.terms import Terms
from veil.params import Params
from veil.runtime.experts import is_experts

TINY = Params.insecure_tiny(signal_db=60.0)
WEAK = Terms(no_cryptography=True)
EXPERTS, USED = 5, 2


def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=USED,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return MixtralForCausalLM(config).eval()


def compiled(leak: Any) -> HybridFHEModel:
    model = mixtral()
    hybrid = HybridFHEModel(model, linear_modules(model), expert_leak=leak)
    hybrid.compile_model(torch.tensor([[5, 9, 33]]), params=TINY)
    return hybrid


def test_the_experts_are_one_module_with_all_weights() -> None:
    model = mixtral()
    names = linear_modules(model)
    assert "model.layers.0.mlp.experts" in names
    assert is_experts(model.model.layers[0].mlp.experts)
    hybrid = compiled("none")
    groups = {group.name.count("+") + 1: group for group in hybrid.manifest.groups if "gate_up" in group.name}
    assert list(groups) == [EXPERTS], "one row goes up for all experts"
    downs = [group for group in hybrid.manifest.groups if "down_proj" in group.name]
    assert [len(group.layers) for group in downs] == [1] * EXPERTS


@pytest.mark.parametrize("leak", ["none", "reveal"])
def test_answers_are_those_of_the_float_experts(leak: Literal["none", "reveal"], tmp_path: Path) -> None:
    hybrid = compiled(leak)
    ids = torch.tensor([[5, 9, 33, 17, 60, 41]])
    with torch.no_grad():
        assert torch.equal(hybrid(ids, fhe="torch").logits, mixtral()(ids).logits)
        logits = {mode: hybrid(ids, fhe=mode).logits for mode in ("torch", "disable", "execute")}
    assert decibels(logits["torch"], logits["disable"]) > 20
    assert decibels(logits["disable"], logits["execute"]) > 30
    hybrid.save(tmp_path / "bundle")
    opened = HybridFHEModel.load(tmp_path / "bundle", terms=Terms(no_cryptography=True, expert_leak=leak))
    torch.testing.assert_close(opened(ids, fhe="disable").logits, logits["disable"], atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="no float weights"):
        opened(ids, fhe="torch")
    stored = sum(p.numel() for p in opened.model.parameters())
    assert stored < sum(p.numel() for p in mixtral().parameters()) / 3, "the client half holds no expert"


@pytest.mark.parametrize("leak", ["none", "reveal"])
def test_what_is_sent_shows_the_routing_only_when_asked_to(leak: str, calls: list[Any]) -> None:
    """Two prompts of equal length that are routed differently: without the leak the server's calls are the same."""
    hybrid = compiled(leak)
    hybrid.set_fhe_mode("execute")
    seen = []
    for prompt in ([5, 9, 33], [60, 2, 7]):
        del calls[:]
        hybrid(torch.tensor([prompt]))
        seen.append([(call.args[1], len(call.args[3]), call.args[3].size) for call in calls if call.method == "evaluate"])
    assert (seen[0] == seen[1]) == (leak == "none")
    names = [group.name for group in hybrid.manifest.groups]
    for asked in seen:
        rows = Counter[str]()
        for group, count, _ in asked:
            rows["down" if "down_proj" in names[group] else "up" if "gate_up" in names[group] else "else"] += count
        assert rows["down"] == 3 * (EXPERTS if leak == "none" else USED)
        assert rows["up"] == 3 * (1 if leak == "none" else USED)


def test_an_unknown_leak_is_refused() -> None:
    with pytest.raises(ValueError, match="expert_leak is 'some', expected one of none, reveal"):
        HybridFHEModel(mixtral(), "lm_head", expert_leak="some")  # type: ignore[arg-type]


class Listed(nn.Module):
    """Experts as a list of layers, called as the router says."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[int(x.sum() > 0)](x)


def test_listed_experts_need_the_leak_by_name() -> None:
    with pytest.raises(ValueError, match=r"'experts\.0' is one expert of several .* expert_leak='reveal'"):
        HybridFHEModel(Listed(), ["experts.0", "experts.1"])
    hybrid = HybridFHEModel(Listed(), ["experts.0", "experts.1"], expert_leak="reveal")
    hybrid.compile_model(torch.ones(1, 6), params=TINY)
    for sign in (1, -1):
        x = sign * torch.ones(1, 6)
        with torch.no_grad():
            assert decibels(hybrid(x, fhe="torch"), hybrid(x, fhe="execute")) > 25
