"""What a GGUF file says beside its weights goes into the configuration that was read from it, or the file is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from veil.errors import ModelSourceError
from veil.sources.gguf_facts import settle

LONG = [1.0, 1.0, 4.0, 8.0]


def file_with(path: Path, said: dict[str, object], tensors: dict[str, list[float]] | None = None) -> Path:
    """A file of architecture ``own`` that says this, without weights."""
    writer = gguf.GGUFWriter(path / "m.gguf", "own")
    for name, value in said.items():
        add: Any = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"own.{name}", value)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "m.gguf"


def config(rope: object = None, **fields: object) -> Any:
    """A configuration of a text model."""
    made = SimpleNamespace(**fields)
    if rope is not None:
        made.rope_parameters = rope
    made.get_text_config = lambda: made
    return made


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


def settled(path: Path, said: dict[str, object], rope: dict[str, Any], tensors: dict[str, list[float]] | None = None) -> Any:
    made = config(rope)
    settle(file_with(path, said, tensors), made)
    return made.rope_parameters


@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({}, {}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, {}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 16,
                "rope.scaling.yarn_beta_fast": 9.0,
                "rope.scaling.yarn_beta_slow": 1.0,
                "rope.scaling.attn_factor": 1.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 9.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_a_scaling_goes_into_the_configuration(said: dict[str, object], scaling: dict[str, object], tmp_path: Path) -> None:
    assert settled(tmp_path, said, dict(DEFAULT)) == DEFAULT | scaling


def test_the_base_of_the_file_is_taken_where_the_configuration_has_none(tmp_path: Path) -> None:
    said: dict[str, object] = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.freq_base": 5e5}
    assert settled(tmp_path, said, {})["rope_theta"] == 5e5
    assert settled(tmp_path, said, dict(DEFAULT))["rope_theta"] == DEFAULT["rope_theta"]


def test_of_layers_of_two_kinds_those_that_see_everything_are_scaled(tmp_path: Path) -> None:
    said: dict[str, object] = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    found = settled(tmp_path, said, {"full_attention": dict(DEFAULT), "sliding_attention": dict(DEFAULT)})
    assert found["full_attention"] == DEFAULT | {"rope_type": "linear", "factor": 8.0}
    assert found["sliding_attention"] == DEFAULT


def llama3(factor: float, base: float = 5e5, count: int = 8) -> list[float]:
    """Llama 3's factors, by its own formula: waves that fit 4 times into 8,192 positions stay, those that do not fit once
    are stretched, and between the two 1/factor goes over smoothly.
    """
    found = []
    for i in range(count):
        wave = 2 * math.pi * base ** (i / count)
        smooth = min(1.0, max(0.0, (8192 / wave - 1) / 3))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def test_factors_of_llama_3_are_known_by_their_values(tmp_path: Path) -> None:
    found = settled(tmp_path, {"rope.freq_base": 5e5}, dict(DEFAULT), {"rope_freqs.weight": llama3(8.0)})
    assert found["rope_type"] == "llama3" and found["factor"] == pytest.approx(8.0)
    assert (found["low_freq_factor"], found["high_freq_factor"]) == (1.0, 4.0)


def test_factors_of_one_change_nothing(tmp_path: Path) -> None:
    assert settled(tmp_path, {}, dict(DEFAULT), {"rope_freqs.weight": [1.0] * 4}) == DEFAULT


@pytest.mark.parametrize(
    ("said", "tensors", "words"),
    [
        ({"rope.scaling.type": "longrope"}, None, "of kind 'longrope'"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 2.0},
            None,
            "rope.scaling.attn_factor = 2",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 0.1},
            None,
            "yarn_log_multiplier",
        ),
        ({}, {"rope_freqs.weight": LONG}, "are not those of Llama 3"),
        ({}, {"rope_factors_long.weight": LONG}, "rope_factors_long.weight"),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.freq_base": 5e5},
            {"rope_freqs.weight": llama3(8.0)},
            "rope_freqs.weight",
        ),
    ],
)
def test_a_scaling_that_transformers_cannot_have_is_refused(
    said: dict[str, object], tensors: dict[str, list[float]] | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=words):
        settled(tmp_path, said, dict(DEFAULT), tensors)


@pytest.mark.parametrize(
    "rope",
    [None, "text", {"sliding_attention": dict(DEFAULT)}, {"rope_type": "yarn"}],
    ids=["none", "text", "two", "yarn"],
)
def test_a_model_that_cannot_hold_a_scaling_is_refused(rope: object, tmp_path: Path) -> None:
    file = file_with(tmp_path, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    with pytest.raises(ModelSourceError, match=r"scaling of rotary positions .*which the model read from it would not have"):
        settle(file, config(rope))


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"embedding_length": 32}, "hidden_size"),
        ({"block_count": 2}, "n_layer"),
        ({"attention.head_count": 4}, "num_attention_heads"),
        ({"attention.head_count_kv": 2}, "num_key_value_heads"),
        ({"attention.layer_norm_rms_epsilon": 1e-5}, "rms_norm_eps"),
        ({"attention.sliding_window": 512}, "sliding_window"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"expert_used_count": 2}, "num_experts_per_tok"),
    ],
)
def test_a_number_that_the_reader_took_otherwise_is_refused(said: dict[str, Any], name: str, tmp_path: Path) -> None:
    ((key, value),) = said.items()
    file = file_with(tmp_path, said)
    settle(file, config(**{name: value}))
    settle(file, config(**{name: None}))
    settle(file, config())
    with pytest.raises(ModelSourceError, match=f"asks for {key} = "):
        settle(file, config(**{name: value * 2}))


def test_what_another_architecture_says_is_passed_over(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "own")
    writer.add_string("oth.rope.scaling.type", "longrope")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    settle(tmp_path / "m.gguf", config(dict(DEFAULT)))
