"""`CudaKernels`: the methods of `interface.Kernels` through Triton, on tensors of the GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray

from veil.errors import WireError
from veil.kernels import reference
from veil.kernels.cuda import checking, ntt_domain, online, packing, product, results
from veil.kernels.cuda.constants import MU, Constants, constants
from veil.kernels.cuda.device import empty, interpreted, put, target
from veil.kernels.cuda.joined import MOST_ROWS, Joined, JoinedThreads
from veil.kernels.cuda.row_test import GpuRowTest, RowPlace
from veil.kernels.cuda.rows import Located, located
from veil.kernels.cuda.secret import DeviceErrors, encrypt_terms
from veil.kernels.interface import (
    Errors,
    GroupResults,
    GroupRows,
    Hint,
    JoinedProduct,
    Rows,
    Scaling,
    SignVectors,
    Words,
    answer_each,
)
from veil.kernels.ring import Ring
from veil.kernels.row_test import RowChunks, RowTest
from veil.params import packed_bytes

Tensor = torch.Tensor
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]

_SUM_BYTES = 32 << 20
"""Of sums between two kernels: they stay in the GPU's cache."""

_PAD_BYTES = 256 << 20
"""Of sums for the pads of several batches at once."""


@dataclass(frozen=True, eq=False)
class CudaHint:
    """G in three bytes, words [blocks, 2, terms, 3, N/4]; see `points`."""

    words: Tensor

    @property
    def blocks(self) -> int:
        """Blocks of w slots."""
        return len(self.words)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.words.numel() * 4

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """See `interface.Hint`."""
        return {"words": self.words.cpu().numpy()}


def _decrypted(data: Tensor, scaling: Scaling, shares: Located, bits: int, scales: Tensor) -> Tensor:
    out = empty(len(data), len(scaling.scale), dtype=torch.float32)
    if out.numel():
        online.decrypt(data, shares, scales, scaling.scale, scaling.bias, out, bits)
    return out


class _Largest:
    """The largest size among some residuals, computed when it is asked for: that waits for the GPU."""

    def __init__(self, residuals: Tensor) -> None:
        self._residuals = residuals

    def __float__(self) -> float:
        return float(self._residuals.abs().amax())


class CudaKernels:
    """See `interface.Kernels`. Nothing online waits for the GPU, so that CUDA graphs can hold it (`graphs.capture`)."""

    name = "cuda"
    asks_cheaply = False
    joins_groups = True
    batches_at_once = 4

    def __init__(self) -> None:
        self._joined = JoinedThreads()

    def asarray(self, values: NDArray[np.generic] | Tensor) -> Tensor:
        return values if isinstance(values, Tensor) else put(values)

    def to_numpy(self, values: Tensor) -> NDArray[Any]:
        here: NDArray[Any] = values.cpu().numpy()
        return here if values.is_cuda else np.array(here)

    def from_torch(self, values: Tensor) -> Tensor:
        return values.detach().to(target()).contiguous()

    def to_torch(self, values: Tensor) -> Tensor:
        return values

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=target()).view(torch.uint32)

    def pack(self, values: U32, bits: int) -> U8:
        return self.to_numpy(packing.pack(put(values), bits))

    def unpack(self, data: U8, count: int, bits: int) -> U32:
        return self.to_numpy(packing.unpack(put(data), count, bits))

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        if parts[0].dtype != torch.uint32:
            return torch.cat(list(parts))
        return torch.cat([part.view(torch.int32) for part in parts]).view(torch.uint32)

    def synchronize(self) -> None:
        if not interpreted():
            torch.cuda.current_stream().synchronize()

    # The server's half, once ---------------------------------------------------------------------------------------------

    def load_weights(self, weights: Sequence[I8]) -> list[Tensor]:
        return [self.asarray(own) for own in weights]

    def inner_hint(self, weights: Tensor, a: U32, ring: Ring) -> Tensor:
        return product.multiply_hint(self.asarray(weights).contiguous(), put(a), ring)

    def new_hint(self, blocks: int, ring: Ring) -> CudaHint:
        return CudaHint(self.zeros(blocks, 2, ring.terms, 3, ring.N // 4))

    def fill_hint(self, hint: Hint, first: int, rows: Tensor, ring: Ring) -> None:
        assert isinstance(hint, CudaHint)
        if len(rows):
            blocks = -(-len(rows) // ring.w)
            ntt_domain.fill(rows.contiguous(), hint.words[first : first + blocks], ring.T, _constants(ring))

    def load_hint(self, arrays: dict[str, NDArray[np.generic]], ring: Ring) -> CudaHint:
        return CudaHint(put(arrays["words"]))

    def prepare(self, hint: Hint, batches: Tensor, bits: int, ring: Ring) -> Tensor:
        assert isinstance(hint, CudaHint)
        k, count = _constants(ring), len(batches)
        out = empty(count, ring.T, hint.blocks * ring.w)
        batches = batches.contiguous()
        step = max(1, _SUM_BYTES // (8 * ring.N * max(1, count)))
        for first in range(0, hint.blocks if count else 0, step):
            words = hint.words[first : first + step]
            sums = empty(count, len(words), 2, ring.N)
            ntt_domain.sums(words, batches, k, sums)
            results.switch(sums, out, first, bits, ring, k)
        return out

    def decode_batches(self, data: Tensor, ring: Ring) -> Tensor:
        if data.ndim != 2 or data.shape[1] != ring.batch_bytes:
            raise WireError(f"{tuple(data.shape)} bytes of batches, expected {ring.batch_bytes} for each")
        packed = data.contiguous().view(-1, packed_bytes(ring.N, ring.prime_bits))
        words = packing.unpack(packed, ring.N, ring.prime_bits).view(-1, ring.terms, 2, ring.N)
        primes = _constants(ring).words[:MU, :1].view(torch.int32)
        if bool((words.view(torch.int32) >= primes).any()):
            reference.check_residues(self.to_numpy(words), ring)
        return words

    # The client's half, offline ------------------------------------------------------------------------------------

    def errors(self, rng: Words, sigma: float) -> Errors:
        return DeviceErrors(rng, sigma)

    def encrypt_batches(self, a: Tensor, z: Tensor, secrets: Tensor, errors: Tensor, ring: Ring) -> Tensor:
        words = encrypt_terms(a, z.contiguous(), secrets.contiguous(), errors.contiguous(), ring, _constants(ring))
        return packing.pack(words.view(-1, ring.N), ring.prime_bits).view(len(z), ring.batch_bytes)

    def load_inner(self, a: U32, ring: Ring) -> Tensor:
        k = _constants(ring)
        return ntt_domain.packed_ntt(put(a).view(torch.int32), k.inner, k)

    def pads(self, inner: Tensor, secrets: Tensor, errors: Iterable[Tensor], ring: Ring) -> list[Tensor]:
        k, count = _constants(ring), len(inner)
        made = [empty(ring.T, count * ring.r) for _ in secrets]
        if not count:
            return made
        keys, source = ntt_domain.small_ntt(secrets.contiguous(), k.inner, k), iter(errors)
        step = max(1, _PAD_BYTES // (8 * ring.m * count))
        for first in range(0, len(made), step):
            some = keys[first : first + step]
            sums = empty(len(some), count, 2, ring.m)
            ntt_domain.sums(inner, some, k, sums)
            for own, out in zip(sums, made[first : first + step], strict=True):
                results.lift(own, next(source).contiguous(), out, ring, k)
        return made

    def load_public(self, table: U32, ring: Ring) -> Tensor:
        return ntt_domain.mu_ntt(self.asarray(table), ring.N, ring.public_bits, _constants(ring))

    def shares(self, public: Tensor, z: Tensor, slots: int, ring: Ring) -> list[Tensor]:
        k = _constants(ring)
        made = [empty(ring.T, slots) for _ in z]
        if not slots:
            return made
        for key, out in zip(ntt_domain.mu_points(z.contiguous(), k), made, strict=True):
            results.multiply_mu(public[: -(-slots // ring.w)], key, out, ring, k)
        return made

    # A row, online -------------------------------------------------------------------------------------------------------

    def encrypt(self, x: Tensor, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[Tensor, Tensor]:
        return self._encrypt(x, scaling, pads, column, bits, None)

    def encrypt_checked(
        self, x: Tensor, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sent = empty(*x.shape, dtype=torch.int32)
        return *self._encrypt(x, scaling, pads, column, bits, sent), sent

    def _encrypt(
        self, x: Tensor, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int, sent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        x = x.contiguous()
        out = empty(rows, packed_bytes(width, bits), dtype=torch.uint8)
        scales = empty(rows, dtype=torch.float64)
        if rows:
            how = (scaling.target, scaling.fixed)
            online.encrypt(x, scaling.divisors, located(pads, column), out, scales, how, bits, sent)
        return out, scales

    def answer(
        self,
        data: Tensor,
        weights: Tensor,
        shares: Sequence[Rows],
        column: int,
        bits: tuple[int, int],
        *,
        serial: bool = False,
    ) -> Tensor:
        out = empty(len(data), packed_bytes(len(weights), bits[1]), dtype=torch.uint8)
        if not out.numel():
            return out
        data, places = data.contiguous(), located(shares, column)
        if len(data) == 1:
            product.answer_row(data, weights, places, bits, out)
        else:
            words = product.multiply(weights, packing.limbs_of(data, weights.shape[1], bits[0]))
            packing.finish(words, places, bits[1], out)
        return out

    def chosen(self) -> AbstractContextManager[object]:
        return nullcontext()

    def joined(self) -> JoinedProduct:
        return Joined()

    def address(self, values: Tensor) -> int:
        return values.data_ptr()

    def answer_groups(self, asked: Sequence[GroupRows]) -> GroupResults:
        if sum(len(own.data) for own in asked) > MOST_ROWS:
            return answer_each(self, asked)
        return self._joined.answer(asked)

    def decrypt(
        self, data: Tensor, scaling: Scaling, shares: Sequence[Rows], column: int, bits: int, scales: Tensor
    ) -> Tensor:
        if not len(data):
            return empty(0, len(scaling.scale), dtype=torch.float32)
        return _decrypted(data.contiguous(), scaling, located(shares, column), bits, scales.contiguous())

    def load_vectors(
        self, edges: NDArray[np.int32], signs: I8, sums: NDArray[np.int16], inverse: NDArray[np.float64]
    ) -> SignVectors:
        arrays = [self.asarray(np.ascontiguousarray(array)) for array in (edges, signs, sums, inverse)]
        return SignVectors(arrays[0], arrays[1], arrays[2], arrays[3], int(np.diff(edges).max()))

    def decrypt_checked(
        self,
        data: Tensor,
        sent: Tensor,
        scaling: Scaling,
        shares: Sequence[Rows],
        column: int,
        bits: int,
        scales: Tensor,
        vectors: SignVectors,
        out: Tensor | RowPlace,
    ) -> tuple[Tensor, SupportsFloat]:
        if not len(data):
            return self.decrypt(data, scaling, shares, column, bits, scales), 0.0
        data, scales, shares_at = data.contiguous(), scales.contiguous(), located(shares, column)
        outputs = _decrypted(data, scaling, shares_at, bits, scales)
        if isinstance(out, RowPlace):
            out.take(data, sent, shares_at, scales)
            return outputs, 0.0
        if not out.numel():
            return outputs, 0.0
        checking.residuals(data, sent.contiguous(), scales, shares_at, vectors, out, bits)
        return outputs, _Largest(out)

    def row_test(
        self,
        vectors: Sequence[tuple[SignVectors, int]],
        chunks: RowChunks,
        sums: NDArray[np.float64],
        rows: NDArray[np.float64],
    ) -> RowTest:
        return GpuRowTest(vectors, chunks, sums, rows)

    def finite(self, scales: Tensor) -> bool:
        """It waits for everything before it on the GPU."""
        return bool(torch.isfinite(scales).all())

    def prefetch(self, weights: Tensor) -> Iterator[object]:
        return iter(())


def _constants(ring: Ring) -> Constants:
    return constants(ring, target())
