"""Concrete ML's LLM page with the import changed: GPT-2's architecture, random weights, every linear layer encrypted."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from veil import HybridFHEModel

torch.manual_seed(0)
config = GPT2Config(n_layer=1, n_embd=96, n_head=4, vocab_size=500, bos_token_id=0, eos_token_id=0, pad_token_id=0)
model = GPT2LMHeadModel(config).eval()
input_ids = torch.randint(1, 500, (1, 6))

remote_names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
hybrid = HybridFHEModel(model, module_names=remote_names)
hybrid.compile_model(input_ids, n_bits=8, use_dynamic_quantization=True)

for mode in ("disable", "simulate", "execute"):
    hybrid.set_fhe_mode(mode)
    attention_mask = torch.ones_like(input_ids)
    output = hybrid.model.generate(input_ids, attention_mask=attention_mask, max_new_tokens=8, do_sample=False)
    print(mode, output[0, 6:].tolist())
print(hybrid.stats)
