"""Where the Triton kernels run: on the current CUDA device, or in Triton's interpreter on the processor."""

from __future__ import annotations

import numpy as np
import torch
import triton
from numpy.typing import NDArray

Tensor = torch.Tensor

_STAGED_BYTES = 1 << 20
"""Arrays up to this size go through page-locked memory."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def target() -> torch.device:
    """Where tensors are put."""
    return torch.device("cpu") if interpreted() else torch.device("cuda", torch.cuda.current_device())


def put(values: NDArray[np.generic]) -> Tensor:
    """A copy of an array on the device, of its shape and dtype; for a small one the host does not wait for the device."""
    source = torch.from_numpy(np.require(values, requirements=["C", "W"]))
    if interpreted():
        return source.clone()
    if not 0 < source.nbytes <= _STAGED_BYTES:
        return source.to(target(), copy=True)
    staged = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)  # PyTorch keeps it until the copy is done
    return staged.copy_(source).to(target(), non_blocking=True)


def block_of(count: int, least: int = 32, most: int = 1 << 30) -> int:
    """The power of two, between these, that has room for so many elements."""
    return min(most, max(least, 1 << max(count - 1, 0).bit_length()))


def empty(*shape: int, dtype: torch.dtype = torch.uint32) -> Tensor:
    """Room of this shape and dtype on the device, not set."""
    return torch.empty(shape, dtype=dtype, device=target())


def memory_bytes() -> tuple[int, int]:
    """Free and total memory of the current device."""
    free, total = torch.cuda.mem_get_info()
    return int(free), int(total)
