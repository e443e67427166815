"""What a GGUF file says of its rotary positions is what the model has, or the file is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from veil.errors import ModelSourceError
from veil.sources.models import load_model

Extra = Callable[[gguf.GGUFWriter], None]
WIDTH, HEAD = 32, 8


def write(path: Path, extra: Extra) -> None:
    """A Llama of one layer in floats, with ``extra`` in its header."""
    alphabet = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, *(chr(256 + i) for i in range(68)), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    settings: tuple[tuple[Callable[[Any], None], Any], ...] = (
        (writer.add_context_length, 64),
        (writer.add_embedding_length, WIDTH),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, WIDTH),
        (writer.add_head_count, WIDTH // HEAD),
        (writer.add_head_count_kv, WIDTH // HEAD),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_dimension_count, HEAD),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, tokens),
        (writer.add_token_merges, ["t h"]),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_unk_token_id, 0),
    )
    for add, value in settings:
        add(value)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    extra(writer)
    draw = np.random.default_rng(3)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), (WIDTH, WIDTH))
    matrices = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    for name, shape in ({"token_embd.weight": (len(tokens), WIDTH)} | matrices).items():
        writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def older_linear(writer: gguf.GGUFWriter) -> None:
    writer.add_float32("llama.rope.scale_linear", 4.0)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


def llama3(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(500000.0)
    writer.add_tensor("rope_freqs.weight", factors(8.0))


def factors(factor: float) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1, whose base is 500,000."""
    waves = 2 * math.pi * 500000.0 ** (np.arange(HEAD // 2) / (HEAD // 2))
    smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


SAID: list[tuple[Extra, dict[str, Any]]] = [
    (linear, {"rope_type": "linear", "factor": 4.0}),
    (older_linear, {"rope_type": "linear", "factor": 4.0}),
    (yarn, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    (llama3, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}),
]


@pytest.mark.parametrize(("extra", "said"), SAID, ids=[extra.__name__ for extra, _ in SAID])
def test_a_scaling_is_the_model_s(
    extra: Extra, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' reader passes over it, and the answers are another model's. Tried by hand."""
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    write(tmp_path / "model.gguf", extra)
    model = load_model(str(tmp_path / "model.gguf")).model
    assert model.config.rope_parameters.items() >= said.items()
    plain = (500000.0 if extra is llama3 else 10000.0) ** (-torch.arange(HEAD // 2) / (HEAD // 2))
    frequencies = model.model.rotary_emb.inv_freq
    if extra in (linear, older_linear):
        torch.testing.assert_close(frequencies, plain / 4)
    elif extra is llama3:
        torch.testing.assert_close(frequencies, plain / torch.from_numpy(factors(8.0)), rtol=1e-4, atol=0)
    else:
        assert float(frequencies[-1]) == pytest.approx(float(plain[-1]) / 4)
        assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)


def odd_factors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.array([1, 2, 3, 4], dtype=np.float32))


def odd_yarn(writer: gguf.GGUFWriter) -> None:
    yarn(writer)
    writer.add_rope_scaling_attn_factors(2.0)


@pytest.mark.parametrize("extra", [longrope, odd_factors, odd_yarn], ids=lambda extra: extra.__name__)
def test_a_scaling_that_cannot_be_held_is_refused(extra: Extra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    write(tmp_path / "model.gguf", extra)
    with pytest.raises(ModelSourceError, match=r"asks for .*, which the model read from it would not have"):
        load_model(str(tmp_path / "model.gguf"))
    assert not list((tmp_path / "cache").iterdir())
