"""Training loops that others wrote, unmodified: transformers.Trainer, TRL's SFTTrainer, a plain loop; four architectures."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from veil import HybridFHEModel, linear_modules
from veil.errors import ModelChanged
from veil.params import Params

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

ROWS = [{"input_ids": [1, *range(3 + i, 11 + i)], "labels": [1, *range(3 + i, 11 + i)]} for i in range(8)]


def hybrid_of(model: nn.Module, sample: Any, mode: str = "execute", *, include_head: bool = True) -> HybridFHEModel:
    hybrid = HybridFHEModel(model, linear_modules(model, include_head))
    hybrid.compile_model(sample, trainable=True, params=Params.insecure_tiny(), device="cpu")
    hybrid.set_fhe_mode(mode)
    return hybrid


def lora(model: nn.Module, *targets: str, **options: Any) -> Any:
    torch.manual_seed(4)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), **options))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "seed": 3,
        "save_strategy": "no",
    }
    return TrainingArguments(**settings | changes)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_with_accumulation_clipping_checkpointing_and_resume(new_model: Any, tmp_path: Path) -> None:
    def train(model: Any, folder: str, **changes: Any) -> Any:
        common = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "gradient_checkpointing": True}
        trainer = Trainer(model, arguments(tmp_path / folder, **common | changes), train_dataset=ROWS)
        trainer.train(resume_from_checkpoint=changes.pop("resume", None))
        return trainer

    expected = losses(train(lora(new_model("llama"), "q_proj", "v_proj"), "float"))
    hybrid = hybrid_of(new_model("llama"), torch.arange(1, 25).reshape(2, 12))
    found = losses(train(lora(hybrid.model, "q_proj", "v_proj"), "ours", save_strategy="steps", save_steps=1))
    assert found == pytest.approx(expected, rel=0.01)
    assert (tmp_path / "ours" / "checkpoint-1" / "adapter_model.safetensors").exists()
    again = lora(hybrid.model, "q_proj", "v_proj")
    trainer = Trainer(
        again,
        arguments(tmp_path / "ours", gradient_accumulation_steps=2, max_grad_norm=0.5, save_strategy="no"),
        train_dataset=ROWS,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-1"))
    assert losses(trainer)[-1] == pytest.approx(expected[-1], rel=0.01)
    hybrid.close()


def test_sft_trainer(new_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Its loss multiplies with the head's weight itself: a remote head is refused, a local one trains."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    data = Dataset.from_list([{"text": " ".join(f"w{(i + j) % 50}" for j in range(10))} for i in range(8)])

    def train(model: Any, folder: str) -> list[float]:
        settings = arguments(tmp_path / folder).to_dict() | {"max_length": 16, "dataset_text_field": "text"}
        names = set(trl.SFTConfig.__dataclass_fields__)
        config = trl.SFTConfig(**{name: value for name, value in settings.items() if name in names and value is not None})
        adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        torch.manual_seed(4)
        trainer = trl.SFTTrainer(
            model, args=config, train_dataset=data, processing_class=tiny_tokenizer, peft_config=adapter
        )
        trainer.train()
        return losses(trainer)

    expected = train(new_model("llama"), "float")
    calibration = torch.arange(1, 25).reshape(2, 12)
    whole = hybrid_of(new_model("llama"), calibration)
    with pytest.raises(ModelChanged, match="uses the weight of 'lm_head' without calling it; leave it out of module_names"):
        train(whole.model, "refused")
    hybrid = hybrid_of(new_model("llama"), calibration, include_head=False)
    assert train(hybrid.model, "ours") == pytest.approx(expected, rel=0.01)
    assert hybrid.stats.rows > 0
    whole.close()
    hybrid.close()


def bert() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, initializer_range=0.2, **sizes)).eval()


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 0.5}
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)).eval()


IDS = torch.tensor([[1, 7, 9, 30, 41, 12, 3, 5], [1, 8, 50, 31, 11, 60, 6, 15]])
CASES: dict[str, tuple[Any, Any, Any, tuple[str, ...]]] = {
    "llama": (None, IDS, {"input_ids": IDS, "labels": IDS}, ("q_proj", "v_proj")),
    "gpt2": (None, IDS, {"input_ids": IDS, "labels": IDS}, ("c_attn", "c_proj")),
    "bert": (bert, {"input_ids": IDS}, {"input_ids": IDS, "labels": torch.tensor([0, 2])}, ("query", "value")),
    "t5": (t5, {"input_ids": IDS, "decoder_input_ids": IDS}, {"input_ids": IDS, "labels": IDS}, ("q", "v", "wo")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plain_loop_through_four_architectures(name: str, new_model: Any) -> None:
    make, sample, inputs, targets = CASES[name]
    make = make or partial(new_model, name)
    float_model = lora(make(), *targets)
    hybrid = hybrid_of(make(), sample)
    ours = lora(hybrid.model, *targets)
    found: dict[str, list[float]] = {}
    for which, model in (("float", float_model), ("ours", ours)):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            found.setdefault(which, []).append(float(loss.detach()))
    assert found["ours"] == pytest.approx(found["float"], rel=0.02)
    assert found["ours"][-1] != found["ours"][0]
    theirs = {name: p.grad for name, p in float_model.named_parameters() if p.grad is not None}
    cosines = [
        nn.functional.cosine_similarity(p.grad.flatten(), theirs[n].flatten(), 0)
        for n, p in ours.named_parameters()
        if n in theirs
    ]
    assert np.median(cosines) > 0.99
    hybrid.close()


def test_activations_of_sixteen_bits_and_scaled_gradients(new_model: Any) -> None:
    hybrid = hybrid_of(new_model("llama"), torch.arange(1, 25).reshape(2, 12))
    model, float_model = lora(hybrid.model, "q_proj"), lora(copy.deepcopy(new_model("llama")), "q_proj")
    gradients = {}
    for which, own, scale in (("float", float_model, 1.0), ("ours", model, 1024.0)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = own(IDS, labels=IDS).loss
        (loss * scale).backward()
        gradients[which] = torch.cat([p.grad.flatten() / scale for p in own.parameters() if p.grad is not None])
    assert nn.functional.cosine_similarity(gradients["ours"], gradients["float"], 0) > 0.98
    assert float(gradients["ours"].norm() / gradients["float"].norm()) == pytest.approx(1, abs=0.05)
    hybrid.close()


def test_a_scaler_that_begins_too_high_skips_the_same_steps(new_model: Any) -> None:
    """Gradients that overflow come back as NaN, so PyTorch's own scaler leaves their step out and goes lower."""
    hybrid = hybrid_of(new_model("llama"), torch.arange(1, 25).reshape(2, 12))
    found = {}
    for which, own in (("float", lora(new_model("llama"), "q_proj")), ("ours", lora(hybrid.model, "q_proj"))):
        optimizer = torch.optim.SGD([p for p in own.parameters() if p.requires_grad], lr=1e-4)
        scaler, scales = torch.amp.GradScaler("cpu", init_scale=2.0**127), []
        for _ in range(6):
            optimizer.zero_grad()
            loss = 32 * own(IDS, labels=IDS).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        found[which] = scales, float(loss.detach())
    assert found["ours"][0] == found["float"][0] and found["ours"][0][0] < 2.0**127
    assert found["ours"][1] == pytest.approx(found["float"][1], rel=0.01)
    hybrid.close()
