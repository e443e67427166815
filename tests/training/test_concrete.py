"""A script for Concrete ML's LoRA trainer, with the import changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from veil import LoraTrainer, get_remote_names, linear_modules
from veil.params import Params

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

IDS = torch.tensor([[1, 7, 9, 30, 41, 12], [1, 8, 50, 31, 11, 60]])


def test_remote_names_leave_adapters_head_and_embeddings_out(new_model: Any) -> None:
    model = new_model("gpt2")
    assert get_remote_names(model) == [f"transformer.h.{i}.{n}" for i in (0, 1) for n in _GPT2]
    assert get_remote_names(model, True) == linear_modules(model, include_embedding=True)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    names = get_remote_names(adapted)
    assert len(names) == 8 and not [name for name in names if "lora" in name]
    assert names[0] == "base_model.model.transformer.h.0.attn.c_attn.base_layer"


_GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_trainer_trains(as_dict: bool, new_model: Any) -> None:
    model = peft.get_peft_model(
        new_model("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
    trainer = LoraTrainer(model, optimizer=optimizer, lr_scheduler=scheduler, training_args=settings)
    with pytest.raises(RuntimeError, match="call compile first"):
        trainer.train([])
    sample = {"input_ids": IDS, "labels": IDS} if as_dict else (IDS, IDS)
    trainer.compile(sample, n_bits=8, params=Params.insecure_tiny(), device="cpu")
    losses = trainer.train([sample] * 2, num_epochs=2, fhe="execute" if as_dict else "disable")
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.05
    assert losses[1] == pytest.approx(losses[0], rel=0.01), "a step takes two batches"
    assert trainer.hybrid_model is not None
    trainer.hybrid_model.close()


def test_a_loss_of_ones_own(new_model: Any) -> None:
    model = peft.get_peft_model(new_model("llama"), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trainer = LoraTrainer(model, loss_fn=lambda outputs, labels: (outputs.logits.mean(dim=(1, 2)) - labels).square().mean())
    trainer.compile(IDS, params=Params.insecure_tiny(), device="cpu")
    labels = torch.tensor([0.0, 1.0])
    losses = trainer.train([(IDS, labels), {"input_ids": IDS, "labels": labels}], fhe="disable")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
