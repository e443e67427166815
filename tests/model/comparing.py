"""Which layers of a model tests make remote, and how far its outputs are from others."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def remote_names(model: nn.Module) -> list[str]:
    """Every linear layer, the head included."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def decibels(signal: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to noise of ``other`` as an estimate of ``signal``."""
    return float(10 * torch.log10(signal.var() / (signal - other).var()))
