"""A tensor as it was when it was seen: whether what comes later is that tensor and still has its values."""

from __future__ import annotations

import torch


class Sighting:
    """A tensor, with what tells whether it was written to: its version, or a copy in inference mode, where it has none."""

    __slots__ = ("_state", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._state: int | torch.Tensor = tensor.clone() if tensor.is_inference() else tensor._version

    def holds(self, other: torch.Tensor) -> bool:
        """Whether the other is this tensor, and nothing was written to it since."""
        if other is not self.tensor:
            return False
        return torch.equal(self._state, other) if isinstance(self._state, torch.Tensor) else self._state == other._version

    def equals(self, other: Sighting) -> bool:
        """Whether the other is of this tensor, and nothing was written to it between the two."""
        if other.tensor is not self.tensor:
            return False
        if isinstance(self._state, torch.Tensor) and isinstance(other._state, torch.Tensor):
            return torch.equal(self._state, other._state)
        return bool(self._state == other._state)
