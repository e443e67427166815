"""What users give to calibrate with, as a call of the model; what it is not is said with what is expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from veil.compile.calibration import calibration_call, calibration_run
from veil.errors import VeilError


def forward(input_ids: Any, attention_mask: Any = None) -> Any:
    return input_ids


def equal(found: Any, expected: torch.Tensor) -> bool:
    return isinstance(found, torch.Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)


IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("x", [IDS, IDS.numpy(), [[1, 2, 3]], (IDS,)], ids=["tensor", "array", "lists", "a tuple of one"])
def test_one_input_goes_in_place(x: Any) -> None:
    args, named = calibration_call(forward, x)
    assert len(args) == 1 and equal(args[0], IDS) and named == {}


def test_double_precision_becomes_single() -> None:
    (found,), _ = calibration_call(forward, np.ones((2, 3)))
    assert equal(found, torch.ones(2, 3))


def test_several_inputs_go_in_their_places() -> None:
    args, named = calibration_call(forward, (IDS, np.ones((1, 3), np.int64)))
    assert equal(args[0], IDS) and equal(args[1], torch.ones(1, 3, dtype=torch.int64)) and named == {}
    with pytest.raises(TypeError, match="x is 3 inputs, which the model does not take at once; join batches"):
        calibration_call(forward, (IDS, IDS, IDS))


def test_what_a_tokenizer_returns_goes_by_name_as_one_sequence() -> None:
    args, named = calibration_call(forward, {"input_ids": [1, 2, 3], "attention_mask": torch.ones(1, 3)})
    assert args == () and equal(named["input_ids"], IDS) and equal(named["attention_mask"], torch.ones(1, 3))


def test_a_dict_that_the_model_takes_whole_stays_one() -> None:
    (found,), named = calibration_call(lambda batch: batch, {"pixels": [[1.0, 2.0]]})
    assert named == {} and isinstance(found, dict) and equal(found["pixels"], torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ("text", "x is a str, expected a tensor"),
        (iter([IDS]), "expected a tensor"),
        ([[1, 2], [3]], "not of numbers in rows of one length"),
        (["a", "b"], "not of numbers"),
        (np.array(["a"]), "x is an array of <U1"),
        ({"input_ids": ["a"]}, "input_ids is a list, but not of numbers"),
    ],
)
def test_what_is_no_input_is_said(x: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        calibration_call(forward, x)


def test_what_torch_cannot_compute_is_said_with_its_shapes() -> None:
    layer = torch.nn.Linear(4, 2)
    run = calibration_run(layer.forward, (torch.ones(1, 3),), {})
    with pytest.raises(ValueError, match=r"the float model cannot be run on x \(\[1, 3\] float32\): .*; give inputs as it"):
        run()
    assert equal(calibration_run(forward, (IDS,), {})(), IDS)


def test_veils_own_errors_stay_themselves() -> None:
    def fails() -> None:
        raise VeilError("ours")

    with pytest.raises(VeilError, match="ours"):
        calibration_run(fails, (), {})()
