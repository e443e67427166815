"""Which tensors are one plain row."""

from __future__ import annotations

import pytest
import torch

from runtime.odd_rows import ODD
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


OTHERS = ODD | {
    "no values": torch.ones(0),
    "no rows": torch.ones(0, 6),
    "no axis": torch.tensor(1.0),
    "integers": torch.ones(1, 6, dtype=torch.int32),
    "array": torch.ones(1, 6).numpy(),
    "nothing": None,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_none(kind: str) -> None:
    assert one_row(OTHERS[kind]) is None
