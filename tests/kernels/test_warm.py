"""Warming up leaves nothing to compile: a whole encrypted generation adds no new kernel signature."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba.core.dispatcher import Dispatcher
from transformers import LlamaConfig, LlamaForCausalLM

from veil import HybridFHEModel
from veil.bundle.terms import Terms
from veil.kernels import cpu, warm
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.runtime.modules import select_modules


def signatures() -> dict[str, list[Any]]:
    found = {}
    for info in pkgutil.iter_modules(cpu.__path__, "veil.kernels.cpu."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if isinstance(value, Dispatcher):
                found[f"{info.name}.{name}"] = list(value.signatures)
    return found


def test_a_generation_compiles_nothing_after_the_warm_up(tmp_path: Path) -> None:
    params = Params.insecure_tiny()
    for call in warm.every_kernel(ring_of(params)):
        call()
    before = signatures()
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=90, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    hybrid = HybridFHEModel(model, select_modules(model, "linear+embedding"))
    ids = torch.from_numpy(np.arange(1, 8)[None])
    hybrid.compile_model(ids, params=params, device="cpu")
    hybrid.set_fhe_mode("execute")
    generating: Any = hybrid.model
    generating.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    hybrid.save(tmp_path / "bundle")
    loaded = HybridFHEModel.load(tmp_path / "bundle", device="cpu", terms=Terms(no_cryptography=True))
    loaded.set_fhe_mode("execute")
    loaded(ids)
    after = signatures()
    assert {name: found for name, found in after.items() if found != before[name]} == {}
