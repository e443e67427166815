"""What no answer needs is not loaded for one, by the library's imports, by a model's making or by generating."""

from __future__ import annotations

import json
import subprocess
import sys

_PROGRAM = """
import json, sys
HEAVY = ("accelerate", "scipy.linalg", "scipy.optimize", "sympy", "torch._dynamo", "torch.distributed.tensor")
from veil.sources.light_imports import load_libraries
load_libraries()
import gc
said = {"collects": gc.isenabled(), "modules are garbage": any(own is vars(sys) for own in gc.get_objects())}
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from veil import HybridFHEModel
from veil.runtime.empty_model import model_without_weights
config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
                     bos_token_id=0, eos_token_id=5, pad_token_id=0)
model = model_without_weights(LlamaForCausalLM, config)
said |= {"device": str(model.lm_head.weight.device)}
for module in model.modules():
    for name, tensor in module.named_parameters(recurse=False):
        setattr(module, name, torch.nn.Parameter(torch.full(tuple(tensor.shape), 0.01)))
hybrid = HybridFHEModel(model.eval(), ["lm_head"])
said["tokens"] = hybrid.model.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False).shape[1]
said["loaded"] = [name for name in HEAVY if name in sys.modules]
torch.Generator().manual_seed(1)
from transformers.distributed import sharding_utils
said["sharded"] = isinstance(torch.zeros(1), sharding_utils.DTensor)
from transformers.loss import loss_for_object_detection as loss
match = getattr(loss, "linear_sum_assignment", lambda costs: ([0], [0]))  # where scipy is not installed
said["matched"] = [int(part[0]) for part in match([[1.0]])]
import torch.export
said["exported"] = callable(torch.export.export)
print(json.dumps(said))
"""


def test_a_generation_loads_none_of_it_and_a_use_loads_it() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {
        "collects": True,
        "modules are garbage": False,
        "device": "meta",
        "tokens": 4,
        "loaded": [],
        "sharded": False,
        "matched": [0, 0],
        "exported": True,
    }
