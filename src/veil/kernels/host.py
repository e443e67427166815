"""`HostArrays`: what kernels whose arrays are NumPy arrays have in common, whatever multiplies them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]


class HostArrays:
    """Part of `interface.Kernels`: arrays come and go as they are, each group is answered and each batch made by itself."""

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
        if data.ndim != 2 or data.shape[1] != ring.batch_bytes:
            raise WireError(f"{data.shape} bytes of batches, expected {ring.batch_bytes} for each")
        packed = data.reshape(-1, packed_bytes(ring.N, ring.prime_bits))
        words = self.unpack(packed, ring.N, ring.prime_bits).reshape(-1, ring.terms, 2, ring.N)
        check_residues(words, ring)
        return words

    def encrypt_batches(self, a: U32, z: I8, secrets: I8, errors: I8, ring: Ring) -> U8:
        out = np.empty((len(z), ring.batch_bytes), dtype=np.uint8)
        for packed, key, secret, own in zip(out, z, secrets, errors, strict=True):
            packed[:] = self._encrypted(a, key, secret, own, ring)
        return out

    def pads(self, inner: Array, secrets: I8, errors: Iterable[I8], ring: Ring) -> list[U32]:
        return [self._pads(inner, secret, own, ring) for secret, own in zip(secrets, errors, strict=True)]

    def shares(self, public: U32, z: I8, slots: int, ring: Ring) -> list[U32]:
        return [self._shares(public, own, slots, ring) for own in z]

    def _encrypted(self, a: U32, z: I8, secret: I8, errors: I8, ring: Ring) -> U8:
        """`interface.Kernels.encrypt_batches` of one batch."""
        raise NotImplementedError

    def _pads(self, inner: Array, secret: I8, errors: I8, ring: Ring) -> U32:
        """`interface.Kernels.pads` of one batch."""
        raise NotImplementedError

    def _shares(self, public: U32, z: I8, slots: int, ring: Ring) -> U32:
        """`interface.Kernels.shares` of one batch."""
        raise NotImplementedError

    def chosen(self) -> AbstractContextManager[object]:
        return nullcontext()

    def joined(self) -> JoinedProduct:
        raise NotImplementedError("these kernels answer each group by itself, as joins_groups says")

    def address(self, values: NDArray[np.generic]) -> int:
        return values.ctypes.data

    def answer_groups(self: Kernels, asked: Sequence[GroupRows]) -> GroupResults:
        return answer_each(self, asked)
