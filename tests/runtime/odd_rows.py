"""Tensors that are no plain row: what is quick for a token's step leaves them to whoever checks."""

from __future__ import annotations

from typing import Any

import torch

ODD: dict[str, Any] = {
    "rows": torch.ones(2, 6),
    "a column": torch.ones(6, 1),
    "float64": torch.ones(1, 6, dtype=torch.float64),
    "bfloat16": torch.ones(1, 6, dtype=torch.bfloat16),
    "trained": torch.ones(1, 6, requires_grad=True),
    "negated": torch._neg_view(torch.ones(1, 6)),
    "sparse": torch.ones(1, 6).to_sparse(),
    "meta": torch.ones(1, 6, device="meta"),
    "parameter": torch.nn.Parameter(torch.ones(1, 6), requires_grad=False),
}
