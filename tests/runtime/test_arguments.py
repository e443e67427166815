"""Arguments of the wrong type: one line where they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from veil import HybridFHEModel, Params
from veil.runtime.arguments import names_of


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 7)).eval()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (5, "module_names is a int"),
        (None, "module_names is a NoneType"),
        (nn.Linear(2, 2), "module_names is a Linear"),
        (nn.Sequential(nn.Linear(2, 2)), "module_names is a Sequential"),
        ([nn.Linear(2, 2)], "module_names holds a Linear"),
        (["0", 2], "module_names holds a int"),
    ],
)
def test_names_are_names(names: Any, told: str) -> None:
    with pytest.raises(TypeError, match=rf"{told}; give names, such as those of veil\.linear_modules"):
        HybridFHEModel(small(), names)


def test_every_kind_of_collection_of_names_is_taken() -> None:
    for names in ("0", ["0"], ("0",), {"0"}, iter(["0"]), {"0": 1}.keys()):
        assert names_of(names) == ["0"]


@pytest.mark.parametrize("names", ["0", "2", ["0", "2"]])
def test_a_model_is_wrapped_once(names: Any) -> None:
    """A second wrapping would make the float layer inside a remote layer remote, and compute it twice."""
    hybrid = HybridFHEModel(small(), "0")
    with pytest.raises(ValueError, match="'0' of this model is remote already; load the model again"):
        HybridFHEModel(hybrid.model, names)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"params": "tiny"}, r"params is a str, expected veil\.Params"),
        ({"progress": True}, "progress is a bool, expected a function"),
        ({"use_dynamic_quantization": None}, "use_dynamic_quantization is None, expected True or False"),
    ],
)
def test_options_of_compiling(options: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        HybridFHEModel(small(), "0").compile_model(torch.ones(1, 12), **options)


def test_a_spec_is_a_spec() -> None:
    with pytest.raises(TypeError, match=r"spec is a str, expected veil\.Spec"):
        Params.from_spec("fine")  # type: ignore[arg-type]
