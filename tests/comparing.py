"""Which layers of a model tests make remote, how far its outputs are from others, and which rows a session used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def remote_names(model: nn.Module) -> list[str]:
    """Every linear layer, the head included."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def decibels(signal: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to noise of ``other`` as an estimate of ``signal``."""
    return float(10 * torch.log10(signal.var() / (signal - other).var()))


def used_rows(calls: Iterable[Any]) -> list[tuple[int, int, int]]:
    """(group, batch, row) of every row that the calls to an engine used, in order."""
    return [
        (call.args[1], span.batch, span.first + offset)
        for call in calls
        if call.method == "evaluate"
        for span in call.args[2]
        for offset in range(span.count)
    ]
