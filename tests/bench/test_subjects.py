"""Shapes are those of the models that they are named after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from veil.bench import subjects
from veil.errors import ModelSourceError


def test_gpt2_has_its_five_shapes() -> None:
    with torch.device("meta"):
        loaded = subjects.load("gpt2")
    assert loaded.parameters == 124_439_808 and loaded.hidden_size == 768 and loaded.most_rows == 1024
    assert subjects.layer_shapes(loaded.model) == (
        (768, 2304, 12),
        (768, 768, 12),
        (768, 3072, 12),
        (3072, 768, 12),
        (768, 50257, 1),
    )


def test_llama_1b_has_the_sums_of_the_protocol() -> None:
    with torch.device("meta"):
        model = subjects._llama_1b()
    shapes = subjects.layer_shapes(model)
    assert sum(outputs * count for _, outputs, count in shapes) == 505_088
    assert sum(width * outputs * count for width, outputs, count in shapes) == 1_235_746_816
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400


def test_a_folder_is_loaded_and_a_wrong_name_is_refused(llama_folder: Path) -> None:
    loaded = subjects.load(str(llama_folder))
    assert loaded.name == "tiny-llama" and loaded.hidden_size == 32
    with pytest.raises(ModelSourceError):
        subjects.load("./no-such-folder")
