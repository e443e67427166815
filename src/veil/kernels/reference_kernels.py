"""`ReferenceKernels`: the methods of `interface.Kernels` as the steps of `reference` make them, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.kernels.gaussian import GaussianTable
from veil.kernels.host import HostArrays
from veil.kernels.interface import Array, Errors, Hint, Rows, Scaling, SignVectors, Words
from veil.kernels.reference import (
    gathered,
    inner_matrix,
    intt,
    lifted,
    matmul,
    pack,
    residues,
    rounded_hint,
    row_scales,
    subring_parts,
    switched,
    top_bits,
    unpack,
)
from veil.kernels.ring import Ring
from veil.kernels.row_test import HostRowTest, RowChunks, RowTest, add_row

U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ReferenceHint:
    """G [2, blocks, terms, N]."""

    points: U32

    @property
    def blocks(self) -> int:
        return self.points.shape[1]

    @property
    def nbytes(self) -> int:
        return self.points.nbytes

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"points": self.points}


class HostErrors:
    """Rounded Gaussians from uniform words, by inversion of two random bytes and, rarely, six more."""

    def __init__(self, rng: Words, sigma: float) -> None:
        self._rng = rng
        self._table = GaussianTable(sigma)

    def draw(self, *shape: int) -> I8:
        """See `interface.Errors`."""
        words = self._rng.words16(int(np.prod(shape)))
        samples = self._table.values[words]
        unclear = np.flatnonzero(samples == GaussianTable.UNCLEAR)
        samples[unclear] = self._table.resolve(words[unclear], self._rng.words64(unclear.size))
        return samples.reshape(shape)


class ReferenceKernels(HostArrays):
    """See `interface.Kernels`."""

    name = "reference"

    def pack(self, values: U32, bits: int) -> U8:
        return pack(values, bits)

    def unpack(self, data: U8, count: int, bits: int) -> U32:
        return unpack(data, count, bits)

    # The server's half, once ---------------------------------------------------------------------------------------------

    def inner_hint(self, weights: I8, a: U32, ring: Ring) -> I32:
        matrix = inner_matrix(a, ring)[:, : weights.shape[1]]
        return rounded_hint(np.ascontiguousarray(matmul(weights, matrix).T), ring)

    def new_hint(self, blocks: int, ring: Ring) -> ReferenceHint:
        return ReferenceHint(np.zeros((2, blocks, ring.terms, ring.N), dtype=np.uint32))

    def fill_hint(self, hint: Hint, first: int, rows: I32, ring: Ring) -> None:
        assert isinstance(hint, ReferenceHint)
        blocks = -(-len(rows) // ring.w)
        padded = np.zeros((blocks * ring.w, ring.n), dtype=np.int32)
        padded[: len(rows)] = rows
        polynomials = (
            padded.reshape(blocks, ring.w, ring.terms, ring.T).transpose(0, 2, 3, 1).reshape(blocks, ring.terms, -1)
        )
        for i, table in enumerate(ring.outer):
            hint.points[i, first : first + blocks] = residues(polynomials, table)

    def load_hint(self, arrays: dict[str, Array], ring: Ring) -> ReferenceHint:
        return ReferenceHint(arrays["points"])

    def prepare(self, hint: Hint, batches: U32, bits: int, ring: Ring) -> U32:
        assert isinstance(hint, ReferenceHint)
        out = np.empty((len(batches), ring.T, hint.blocks * ring.w), dtype=np.uint32)
        for batch, own in zip(batches, out, strict=True):
            values = np.empty((2, hint.blocks, ring.N), dtype=np.uint32)
            for i, table in enumerate(ring.outer):
                points = hint.points[i].astype(np.uint64)
                sums = (points * batch[:, i].astype(np.uint64)).sum(axis=1) % np.uint64(table.prime)
                values[i] = intt(sums.astype(np.uint32), table)
            words = switched(values, bits, ring)
            own[:] = words.reshape(-1, ring.T, ring.w).transpose(1, 0, 2).reshape(ring.T, -1)
        return out

    # The client's half, offline ------------------------------------------------------------------------------------

    def errors(self, rng: Words, sigma: float) -> Errors:
        return HostErrors(rng, sigma)

    def _encrypted(self, a: U32, z: I8, secret: I8, errors: I8, ring: Ring) -> U8:
        out = np.empty((ring.terms, 2, ring.N), dtype=np.uint32)
        message = np.zeros((ring.terms, ring.N), dtype=np.int64)
        message[:, :: ring.w] = subring_parts(secret, ring)
        for i, table in enumerate(ring.outer):
            p = np.uint64(table.prime)
            plain = residues(message * ring.scale + errors, table).astype(np.uint64)
            product = a[:, i].astype(np.uint64) * residues(z, table) % p
            out[:, i] = ((plain + p - product) % p).astype(np.uint32)
        return pack(out.reshape(-1, ring.N), ring.prime_bits).reshape(-1)

    def load_inner(self, a: U32, ring: Ring) -> U32:
        return np.stack([residues(a.view(np.int32), table) for table in ring.inner])

    def _pads(self, inner: U32, secret: I8, errors: I8, ring: Ring) -> U32:
        values = np.empty((2, inner.shape[1], ring.m), dtype=np.uint32)
        for i, table in enumerate(ring.inner):
            sums = (inner[i].astype(np.uint64) * residues(secret, table)).sum(axis=1) % np.uint64(table.prime)
            values[i] = intt(sums.astype(np.uint32), table)
        rows = lifted(values, ring).reshape(-1, ring.T, ring.r).transpose(1, 0, 2).reshape(ring.T, -1)
        return rows + errors.astype(np.int32).view(np.uint32)

    def load_public(self, table: U32, ring: Ring) -> U32:
        signed = table.astype(np.int64)
        signed[signed >= 1 << (ring.public_bits - 1)] -= 1 << ring.public_bits
        return residues(signed.reshape(ring.T, -1, ring.w).transpose(1, 0, 2).reshape(-1, ring.N), ring.mu)

    def _shares(self, public: U32, z: I8, slots: int, ring: Ring) -> U32:
        p = np.uint64(ring.mu.prime)
        product = intt((public.astype(np.uint64) * residues(z, ring.mu) % p).astype(np.uint32), ring.mu).astype(np.int64)
        product[product > ring.mu.prime // 2] -= ring.mu.prime
        words = (product.astype(np.uint32) << np.uint32(32 - ring.public_bits)).reshape(-1, ring.T, ring.w)
        return np.ascontiguousarray(words.transpose(1, 0, 2).reshape(ring.T, -1)[:, :slots])

    # A row, online -------------------------------------------------------------------------------------------------------

    def encrypt(self, x: F32, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[U8, F64]:
        return self.encrypt_checked(x, scaling, pads, column, bits)[:2]

    def encrypt_checked(self, x: F32, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[U8, F64, I64]:
        divided = x if scaling.divisors is None else x / scaling.divisors
        tau, shown = row_scales(divided, scaling.target, scaling.fixed)
        good, sent = np.isfinite(tau), np.zeros(x.shape, dtype=np.int64)
        sent[good] = np.rint(divided[good].astype(np.float64) * tau[good, None]).astype(np.int64)
        data = pack(top_bits(sent.astype(np.uint32) + gathered(pads, column, x.shape[1]), bits), bits)
        data[~good] = 0
        return data, shown, sent

    def answer(
        self,
        data: U8,
        weights: I8,
        shares: Sequence[Rows],
        column: int,
        bits: tuple[int, int],
        *,
        serial: bool = False,
    ) -> U8:
        up, down = bits
        rows = unpack(data, weights.shape[1], up) << np.uint32(32 - up)
        return pack(top_bits(matmul(weights, rows) - gathered(shares, column, len(weights)), down), down)

    def decrypt(self, data: U8, scaling: Scaling, shares: Sequence[Rows], column: int, bits: int, scales: F64) -> F32:
        width = len(scaling.scale)
        words = unpack(data, width, bits) << np.uint32(32 - bits)
        values = (words - gathered(shares, column, width)).view(np.int32)
        inverse = np.zeros(len(scales))
        np.divide(1.0, scales, out=inverse, where=scales != 0)
        return (values * inverse[:, None] * scaling.scale.astype(np.float64) + scaling.bias).astype(np.float32)

    def load_vectors(self, edges: NDArray[np.int32], signs: I8, sums: NDArray[np.int16], inverse: F64) -> SignVectors:
        return SignVectors(edges, signs, sums, inverse, int(np.diff(edges).max()))

    def decrypt_checked(
        self,
        data: U8,
        sent: I64,
        scaling: Scaling,
        shares: Sequence[Rows],
        column: int,
        bits: int,
        scales: F64,
        vectors: SignVectors,
        out: F64,
    ) -> tuple[F32, float]:
        slots = int(vectors.edges[-1])
        words = unpack(data, slots, bits) << np.uint32(32 - bits)
        values = (words - gathered(shares, column, slots)).view(np.int32).astype(np.int64)
        signed = vectors.signs.astype(np.int64)[None] * values[:, None]
        got = np.add.reduceat(signed, vectors.edges[:-1], axis=2).transpose(0, 2, 1)
        expected = np.einsum("kji,ri->rkj", vectors.sums.astype(np.int64), sent)
        residuals = (got - expected).astype(np.uint32).view(np.int32) * vectors.inverse
        residuals[~np.isfinite(scales)] = 0.0
        out[:] = residuals.reshape(len(sent), -1)
        return self.decrypt(data, scaling, shares, column, bits, scales), float(np.abs(out).max(initial=0.0))

    def row_test(self, vectors: Sequence[tuple[SignVectors, int]], chunks: RowChunks, sums: F64, rows: F64) -> RowTest:
        return HostRowTest([own.count for own, _ in vectors], chunks, sums, rows, add_row)

    def finite(self, scales: F64) -> bool:
        return bool(np.isfinite(scales).all())

    def prefetch(self, weights: I8) -> Iterator[object]:
        return iter(())
