"""What is taken of somebody else's generation settings: which words are likely, never how much is sent for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veil.errors import BundleError
from veil.sources.generation_settings import FIELDS, generation_settings, harmless


def test_what_changes_how_many_rows_go_up_is_left_out() -> None:
    fields = {
        "temperature": 0.7, "eos_token_id": [1, 2], "num_beams": 4, "num_return_sequences": 3, "prompt_lookup_num_tokens": 5,
        "assistant_early_exit": 2, "custom_generate": "x", "use_cache": False, "watermarking_config": {}, "top_k": None,
    }  # fmt: skip
    assert harmless(fields) == {"temperature": 0.7, "eos_token_id": [1, 2]}


GOOD: dict[str, list[Any]] = {
    "do_sample": [True, False],
    "temperature": [0, 0.5, 2],
    "top_k": [0, 50],
    "max_length": [20],
    "pad_token_id": [-1, 0, 5],
    "suppress_tokens": [[], [1, -1], 7],
}
BAD: dict[str, list[Any]] = {
    "do_sample": [1, "yes"],
    "temperature": [-0.1, float("nan"), float("inf"), "1", True, [0.5]],
    "top_k": [-1, 1.5, 1 << 31, True],
    "max_length": [-1, "20", [20]],
    "pad_token_id": [-2, 1.0, "2", True],
    "suppress_tokens": [[-2], [1.5], [[1]], list(range(5000)), {"1": 2}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_settings_of_their_type_are_taken(name: str, value: Any) -> None:
    assert harmless({name: value}) == {name: value}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_settings_of_another_type_are_refused(name: str, value: Any) -> None:
    assert name in FIELDS
    with pytest.raises(BundleError, match=f"have a {name} that is none; distrust who made it"):
        harmless({name: value})


def test_they_are_the_halfs_or_those_of_the_models_configuration(tmp_path: Path, tiny_llama: Any) -> None:
    found = generation_settings(tmp_path, tiny_llama)
    assert (found.eos_token_id, found.bos_token_id) == (2, 1)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "num_beams": 4}))
    found = generation_settings(tmp_path, tiny_llama)
    assert found.eos_token_id == 7 and found.num_beams in (None, 1)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(BundleError, match="it is not an object"):
        generation_settings(tmp_path, tiny_llama)
