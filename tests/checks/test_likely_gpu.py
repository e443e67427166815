"""The GPU's kernels of the likely tokens' logits, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("interpreter")
likely = pytest.importorskip("veil.kernels.cuda.likely", reason="Triton has packages for Linux only")
target = pytest.importorskip("veil.kernels.cuda.device", reason="Triton has packages for Linux only").target

FEW, PART = 4, 64
"""Likely ones, and slots of a program: Triton's interpreter takes long to sort many."""


def refined(x: torch.Tensor, table: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    places = outputs.topk(FEW, dim=1).indices
    exact = torch.einsum("rkw,rw->rk", table[places].float(), x)
    return outputs.scatter(1, places, exact)


def drawn(rows: int, slots: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(slots + width)
    outputs, table = torch.randn(rows, slots, generator=draw), torch.randn(slots, width, generator=draw)
    x = torch.randn(rows, width, generator=draw)
    return x.to(target()), table.to(target()), outputs.to(target())


@pytest.mark.parametrize(
    ("rows", "slots", "width", "kind"),
    [
        (1, 4, 1, torch.float32),
        (2, 17, 33, torch.bfloat16),
        (1, 128, 8, torch.float16),
        (2, 129, 1030, torch.float32),
        (1, 300, 24, torch.float32),
    ],
)
def test_the_likely_ones_are_computed_and_the_others_stay(rows: int, slots: int, width: int, kind: torch.dtype) -> None:
    x, table, outputs = drawn(rows, slots, width)
    expected = refined(x, table.to(kind), outputs)
    likely.refine(x, table.to(kind), FEW, outputs, PART)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_order_is_that_of_the_values() -> None:
    """Signs, zeros and infinities; among equals the first places are taken."""
    x, table, _ = drawn(1, 70, 4)
    for best in ([3.0, -1.0, -2.0], [float("inf"), 0.0, -1e-40], [1e-40, -0.5, -float("inf")]):
        outputs = torch.full((1, 70), -5.0, device=x.device)
        outputs[0, 2:5] = torch.tensor(best, device=x.device)
        right = refined(x, table, torch.where(outputs == -5.0, -5.0 - torch.arange(70, device=x.device) / 70, outputs))
        likely.refine(x, table, FEW, outputs, PART)
        assert torch.allclose(outputs[outputs != -5.0], right[outputs != -5.0], atol=1e-4)
        assert (outputs != -5.0).sum() == FEW + (best[-1] == -float("inf"))


def test_all_below_zero() -> None:
    x, table, outputs = drawn(2, 100, 16)
    outputs = -outputs.abs() - 1.0
    expected = refined(x, table, outputs)
    likely.refine(x, table, FEW, outputs, PART)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
