"""Which modules have a shorter way for one row; see `row_steps`."""

from __future__ import annotations

from torch import nn

from veil.runtime.row_attention import attention_step
from veil.runtime.row_mlp import gated_step
from veil.runtime.row_norms import local_step
from veil.runtime.row_steps import RowStep


def step_of(module: nn.Module, holds_layers: bool) -> RowStep | None:
    """The step of a module, which ``holds_layers`` that are remote or does not; None for one that is left as it is."""
    return (gated_step(module) or attention_step(module)) if holds_layers else local_step(module)
