"""Which tensors are one plain row."""

from __future__ import annotations

import pytest
import torch

from veil.runtime.plain_row import one_row


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
def test_a_plain_row_is_its_own_values(shape: tuple[int, ...]) -> None:
    x = torch.arange(6.0).view(shape)
    values = one_row(x)
    assert values is not None
    assert values.shape == shape
    x += 1
    assert values.tolist() == x.tolist(), "not a copy"


def test_a_row_with_steps_between_its_values_is_one() -> None:
    values = one_row(torch.arange(12.0)[::2])
    assert values is not None
    assert values.tolist() == [0, 2, 4, 6, 8, 10]


OTHERS: dict[str, object] = {
    "rows": torch.ones(2, 6),
    "a column": torch.ones(6, 1),
    "no values": torch.ones(0),
    "no rows": torch.ones(0, 6),
    "no axis": torch.tensor(1.0),
    "float64": torch.ones(1, 6, dtype=torch.float64),
    "integers": torch.ones(1, 6, dtype=torch.int32),
    "bfloat16": torch.ones(1, 6, dtype=torch.bfloat16),
    "trained": torch.ones(1, 6, requires_grad=True),
    "negated": torch._neg_view(torch.ones(1, 6)),
    "sparse": torch.ones(1, 6).to_sparse(),
    "meta": torch.ones(1, 6, device="meta"),
    "parameter": torch.nn.Parameter(torch.ones(1, 6), requires_grad=False),
    "array": torch.ones(1, 6).numpy(),
    "nothing": None,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_none(kind: str) -> None:
    assert one_row(OTHERS[kind]) is None
