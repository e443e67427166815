"""`HostArrays`: what kernels whose arrays are NumPy arrays have in common, whatever multiplies them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from veil.errors import WireError
from veil.kernels.interface import Array, GroupResults, GroupRows, JoinedProduct, Kernels, answer_each
from veil.kernels.memory import S
from veil.kernels.reference import check_residues
from veil.kernels.ring import Ring
from veil.params import packed_bytes

if TYPE_CHECKING:
    import torch

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]


class HostArrays:
    """Part of `interface.Kernels`: arrays come and go as they are, each group is answered by itself."""

    asks_cheaply = True
    joins_groups = False
    batches_at_once = 2

    def asarray(self, values: NDArray[S]) -> NDArray[S]:
        return values

    def to_numpy(self, values: NDArray[S]) -> NDArray[S]:
        return values

    def from_torch(self, values: torch.Tensor) -> Array:
        if values.requires_grad:
            values = values.detach()
        return values.contiguous().numpy() if values.is_cpu else values.cpu().numpy()

    def to_torch(self, values: NDArray[np.generic]) -> torch.Tensor:
        import torch

        return torch.from_numpy(values)

    def zeros(self, *shape: int) -> U32:
        return np.zeros(shape, dtype=np.uint32)

    def concatenate(self, parts: Sequence[NDArray[S]]) -> NDArray[S]:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def synchronize(self) -> None:
        return

    def load_weights(self, weights: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        return list(weights)

    def decode_batches(self: Kernels, data: U8, ring: Ring) -> U32:
        size = packed_bytes(ring.N, ring.prime_bits)
        if data.ndim != 2 or data.shape[1] != ring.terms * 2 * size:
            raise WireError(f"{data.shape} bytes of batches, expected {ring.terms * 2 * size} for each")
        words = self.unpack(data.reshape(-1, size), ring.N, ring.prime_bits).reshape(-1, ring.terms, 2, ring.N)
        check_residues(words, ring)
        return words

    def chosen(self) -> AbstractContextManager[object]:
        return nullcontext()

    def joined(self) -> JoinedProduct:
        raise NotImplementedError("these kernels answer each group by itself, as joins_groups says")

    def address(self, values: NDArray[np.generic]) -> int:
        return values.ctypes.data

    def answer_groups(self: Kernels, asked: Sequence[GroupRows]) -> GroupResults:
        return answer_each(self, asked)
