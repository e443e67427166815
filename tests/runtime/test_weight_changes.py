"""Weights that were moved are looked at where they are now, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from veil.errors import ModelChanged
from veil.runtime.weight_changes import Fingerprints


def test_a_place_that_was_given_back_is_not_read() -> None:
    module = nn.Linear(3, 3)
    known = Fingerprints({"x": module})
    old = module.weight.data
    module.weight.data = old.clone()
    old.untyped_storage().resize_(0)
    known.check(values=True)
    known.check(values=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_question_finds_the_tensor_that_changed(dtype: torch.dtype) -> None:
    """Among tensors of several types and shapes, one without elements among them."""
    module = nn.ParameterDict({
        "row": nn.Parameter(torch.ones(5)),
        "table": nn.Parameter(torch.ones(4, 6, dtype=dtype)),
        "one": nn.Parameter(torch.tensor(2.0)),
        "none": nn.Parameter(torch.ones(0)),
    })  # fmt: skip
    known = Fingerprints({"x": module})
    known.check(values=True)
    for name in ("row", "table", "one"):
        value = module[name].data.view(-1)[0].clone()
        module[name].data.view(-1)[0] = 7
        with pytest.raises(ModelChanged, match="'x' changed"):
            known.check(values=True)
        module[name].data.view(-1)[0] = value
        known.check(values=True)
