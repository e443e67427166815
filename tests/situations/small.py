"""Small models, parameters without noise that matters, and what two outputs have to have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from veil import HybridFHEModel
from veil.params import Params
from veil.server.local import LocalServer

TINY = Params.insecure_tiny(signal_db=60.0)
IDS = torch.tensor([[5, 9, 33, 17]])


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """A model with random but fixed weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def two_layers(seed: int = 0) -> nn.Sequential:
    """A linear layer, a ReLU, a linear layer: 6 to 8 to 5."""
    made: nn.Sequential = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), seed)
    return made


def inputs(rows: int = 3, width: int = 6) -> torch.Tensor:
    """Rows [rows, width], the same ones each time."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(7))


def compiled(model: nn.Module, names: Any, x: Any, mode: str = "execute", **settings: Any) -> HybridFHEModel:
    """A hybrid model of ``model`` with its layers ``names`` remote, calibrated on ``x``."""
    hybrid = HybridFHEModel(model, names)
    hybrid.compile_model(x, params=TINY, **settings)
    hybrid.set_fhe_mode(mode)
    return hybrid


def assert_near(got: torch.Tensor, expected: torch.Tensor, share: float = 0.05) -> None:
    """Eight-bit weights and noise change no more than ``share`` of the largest value."""
    assert got.shape == expected.shape
    assert float((got.float() - expected.float()).abs().max()) <= share * float(expected.float().abs().max())


def kept(hybrid: HybridFHEModel) -> tuple[int, int]:
    """Batches of rows that the client and the server keep."""
    session = hybrid.sides.local
    assert session is not None
    server = session.transport
    assert isinstance(server, LocalServer)
    return session.pool.batch_count, server.store.batch_count


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def model_of(name: str, **settings: Any) -> Any:
    """A model of transformers' class ``name`` with a small configuration."""
    kind = getattr(transformers, name)
    return seeded(lambda: kind(kind.config_class(**settings)))


def llama() -> Any:
    """A Llama of two layers."""
    return model_of("LlamaForCausalLM", **SIZES, tie_word_embeddings=False)


def t5() -> Any:
    """An encoder-decoder of two layers each."""
    settings = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return model_of("T5ForConditionalGeneration", **settings, **tokens, initializer_factor=1.0)


def bert() -> Any:
    """An encoder of two layers."""
    return model_of("BertModel", **{name: value for name, value in SIZES.items() if name != "num_key_value_heads"})
