"""Adapters of peft around remote layers: injected before or after wrapping, of each kind, switched, never merged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.errors import RemoteWeightError
from veil.runtime import saved_model

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values. is deprecated:FutureWarning"),
]

IDS = torch.tensor([[1, 7, 9, 30, 41, 12, 3, 5, 22], [1, 8, 50, 31, 11, 60, 6, 15, 33]])
WEAK = Terms(no_cryptography=True)
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "dora": lambda: peft.LoraConfig(use_dora=True, **LORA),
    "rslora": lambda: peft.LoraConfig(use_rslora=True, **LORA),
    "all-linear": lambda: peft.LoraConfig(**LORA | {"target_modules": "all-linear"}),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}
BEFORE = ("lora", "dora", "ia3")


def adapt(kind: str) -> Callable[[nn.Module], Any]:
    """Adds an adapter of a kind whose weights are fixed and not the ones that change nothing."""

    def add(model: nn.Module) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            adapted = peft.get_peft_model(model, KINDS[kind]())
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if parameter.requires_grad and "magnitude" not in name:
                        parameter += 0.1 * torch.randn_like(parameter)
        return adapted

    return add


@pytest.mark.parametrize(("kind", "before"), [(k, False) for k in KINDS] + [(k, True) for k in BEFORE])
def test_gradients_of_every_kind_are_those_of_the_float_model(kind: str, before: bool, twins: Any) -> None:
    pair = twins(adapt(kind), before=before)
    pair.hybrid.set_fhe_mode("execute")
    trainable = {name for name, parameter in pair.model.named_parameters() if parameter.requires_grad}
    found = pair.cosines()
    assert set(found) == trainable, "nothing but the adapter trains, and all of it"
    assert min(found.values()) > 0.99
    assert np.median(list(found.values())) > 0.999
    pair.hybrid.close()


def test_an_adapter_around_conv1d(twins: Any) -> None:
    config = {
        "r": 4,
        "target_modules": ["c_attn", "c_proj"],
        "fan_in_fan_out": True,
        "use_dora": True,
        "task_type": "CAUSAL_LM",
    }
    for before in (False, True):
        with pytest.warns(UserWarning, match="fan_in_fan_out") if not before else _nothing():
            pair = twins(lambda model: peft.get_peft_model(model, peft.LoraConfig(**config)), name="gpt2", before=before)
        with torch.no_grad():
            for model in (pair.model, pair.float_model):
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.copy_(0.1 * torch.sin(torch.arange(parameter.numel()).view_as(parameter)))
        assert min(pair.cosines().values()) > 0.99


def test_several_adapters_are_switched_and_turned_off(twins: Any) -> None:
    pair = twins(adapt("lora"))
    for model in (pair.model, pair.float_model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model.add_adapter("other", peft.LoraConfig(**LORA | {"init_lora_weights": False}))
    with torch.no_grad():
        plain, outputs = pair.model.get_base_model(), {}
        for name in ("default", "other"):
            pair.model.set_adapter(name)
            pair.float_model.set_adapter(name)
            outputs[name] = pair.model(IDS).logits
            assert (outputs[name] - pair.float_model(IDS).logits).abs().max() < 0.2
        with pair.model.disable_adapter():
            without = pair.model(IDS).logits
    assert plain is pair.hybrid.model
    assert (outputs["default"] - outputs["other"]).abs().max() > 1
    assert min((without - own).abs().max() for own in outputs.values()) > 1


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_merging_is_refused_with_a_reason(kind: str, twins: Any) -> None:
    pair = twins(adapt(kind))
    logits = pair.model(IDS).logits
    for merge in (pair.model.merge_adapter, pair.model.merge_and_unload):
        with pytest.raises(RemoteWeightError, match="on the server, so nothing can be merged into it"):
            merge()
    assert torch.equal(pair.model(IDS).logits, logits)
    assert pair.model.unload() is pair.hybrid.model, "without merging it can be taken off"


@pytest.mark.parametrize("before", [False, True])
def test_a_model_with_an_adapter_is_saved_without_it(before: bool, twins: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pair = twins(adapt("lora"), before=before)
    pair.hybrid.save(tmp_path / "b", tokenizer=tiny_tokenizer)
    pair.model.save_pretrained(tmp_path / "adapter")
    expected = pair.model(IDS).logits
    opened = HybridFHEModel.load(tmp_path / "b", device="cpu", terms=WEAK)
    assert not [name for name, _ in opened.model.named_parameters() if "lora" in name]
    again = peft.PeftModel.from_pretrained(opened.model, str(tmp_path / "adapter"))
    assert torch.equal(again(IDS).logits, expected)
    in_floats = peft.PeftModel.from_pretrained(copy.deepcopy(pair.float_model).unload(), str(tmp_path / "adapter"))
    assert (in_floats(IDS).logits - expected).abs().max() < 0.3, "other tools read it"


def test_dora_without_weights_says_what_is_missing(twins: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pair = twins()
    pair.hybrid.save(tmp_path / "b", tokenizer=tiny_tokenizer)
    model = saved_model.load_client(tmp_path / "b" / "client", WEAK).model
    with pytest.raises(RemoteWeightError, match="what needs its values cannot run here"):
        peft.get_peft_model(model, KINDS["dora"]())


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
