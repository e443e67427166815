"""Which tensors are one plain row: what is quick for a token's step is tried with these alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Tensor = torch.Tensor
F32 = NDArray[np.float32]
_FLOAT = np.dtype(np.float32)  # the one object that NumPy has for it


def one_row(x: object) -> F32 | None:
    """The values [..., width] of a plain float32 tensor of one row on this processor, else None.

    NumPy gives no array of a tensor without values, of another device, layout or kind, or one that gradients come back to.
    """
    if type(x) is not Tensor:
        return None
    try:
        values = x.numpy()
    except (RuntimeError, TypeError):
        return None
    shape = values.shape
    return values if values.dtype is _FLOAT and shape and values.size == shape[-1] > 0 else None
