"""GGUF files of the common quantizations become the floats that the gguf package decodes them to."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from veil.sources.models import load_model

KINDS = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
"""What published files are made of."""

WIDTH = 256
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_0": (0,), "Q4_1": (0, 2)}
SCALES |= {"Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,)}
"""Where the half-precision factors stand in a block."""


def blocks(kind: str, shape: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """Random bytes of a quantized tensor whose factors are ordinary numbers."""
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    if kind in ("F16", "BF16"):
        halves = draw.uniform(-0.1, 0.1, shape).astype(np.float32)
        return halves.astype(np.float16) if kind == "F16" else gguf.quantize(halves, Kind.BF16)
    data = draw.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        factor = draw.uniform(1e-4, 1e-3, data.shape[:2]).astype(np.float16)
        data[..., place : place + 2] = factor[..., None].view(np.uint8)
    return data.reshape(shape[0], -1)


def write(path: Path, kind: str) -> dict[str, np.ndarray]:
    """A Llama of one layer with quantized matrices; the floats that they stand for."""
    alphabet = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, *(chr(256 + i) for i in range(68)), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    draw, floats = np.random.default_rng(3), {}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("token_embd.weight", draw.standard_normal((len(tokens), WIDTH)).astype(np.float32))
    half = WIDTH // 2
    rows = {"attn_q": WIDTH, "attn_k": half, "attn_v": half, "attn_output": WIDTH, "ffn_gate": WIDTH, "ffn_up": WIDTH}
    for name, count in {**rows, "ffn_down": WIDTH}.items():
        data = blocks(kind, (count, WIDTH), draw)
        raw = None if kind == "F16" else Kind[kind]
        writer.add_tensor(f"blk.0.{name}.weight", data, raw_dtype=raw)
        floats[name] = gguf.dequantize(data, Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return floats


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_file_is_the_floats_it_stands_for(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path / "cache"))
    floats = write(tmp_path / "model.gguf", kind)
    model = load_model(str(tmp_path / "model.gguf")).model
    layer = model.model.layers[0]
    places = {"attn_v": layer.self_attn.v_proj, "attn_output": layer.self_attn.o_proj}
    places |= {"ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj, "ffn_down": layer.mlp.down_proj}
    for name, module in places.items():
        assert np.isfinite(floats[name]).all()
        assert floats[name].std() > 0
        torch.testing.assert_close(module.weight.detach(), torch.from_numpy(floats[name]))
