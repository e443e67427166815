"""`CpuKernels`: the methods of `interface.Kernels` through Numba; equal to the reference, word for word."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from veil.kernels import reference
from veil.kernels.cpu import checking, loading, online, packing, product, row_test, sign_sums, strips
from veil.kernels.cpu.constants import constants
from veil.kernels.cpu.gaussian import CpuErrors
from veil.kernels.cpu.threads import ProductThreads, all_threads, clock, threads_for
from veil.kernels.cpu.three_bytes import ThreeBytes, three_bytes
from veil.kernels.cpu.transform import COLUMNS
from veil.kernels.host import HostArrays
from veil.kernels.interface import (
    Array,
    Errors,
    Hint,
    Rows,
    Scaling,
    SignVectors,
    Words,
)
from veil.kernels.memory import aligned, room
from veil.kernels.ring import Ring
from veil.kernels.row_test import HostRowTest, RowChunks, RowTest
from veil.params import packed_bytes

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_HINT_ROWS = 256
"""Rows of A that are multiplied at once when a hint is built."""
STEP_BYTES = 128 << 10
"""Some 3 µs of reading."""
_PREFETCHED_BYTES = 8 << 20
"""Of one group's weights: caches have room for no more."""
_NO_DIVISORS = np.empty(0, dtype=np.float32)


class CpuKernels(HostArrays):
    """See `interface.Kernels`."""

    name = "cpu"

    def __init__(self) -> None:
        self._products = ProductThreads()

    # The server's half, once ---------------------------------------------------------------------------------------------

    def inner_hint(self, weights: I8, a: U32, ring: Ring) -> I32:
        width = weights.shape[1]
        out = np.empty((len(weights), ring.n), dtype=np.int32)
        matrix = reference.inner_matrix(a, ring)
        for first in range(0, ring.n, _HINT_ROWS):
            rows = np.ascontiguousarray(matrix[first : first + _HINT_ROWS, :width])
            out[:, first : first + len(rows)] = reference.rounded_hint(self.matmul(weights, rows), ring).T
        return out

    def new_hint(self, blocks: int, ring: Ring) -> ThreeBytes:
        hint = three_bytes(blocks, ring.N, ring.terms)
        hint.low[:], hint.high[:] = 0, 0
        return hint

    def fill_hint(self, hint: Hint, first: int, rows: I32, ring: Ring) -> None:
        assert isinstance(hint, ThreeBytes)
        assert first % COLUMNS == 0
        k, blocks = constants(ring), -(-len(rows) // ring.w)
        tiles = slice(first // COLUMNS, -(-(first + blocks) // COLUMNS))
        loading.fill_hint(rows, hint.low[tiles], hint.high[tiles], k.primes, k.outer_forward)

    def load_hint(self, arrays: dict[str, Array], ring: Ring) -> ThreeBytes:
        return ThreeBytes(arrays["low"], arrays["high"], int(arrays["count"][0]))

    def prepare(self, hint: Hint, batches: U32, bits: int, ring: Ring) -> U32:
        assert isinstance(hint, ThreeBytes)
        k, count = constants(ring), len(batches)
        out = room((count, ring.T, hint.count * ring.w), np.uint32)
        if out.size:
            loaded = np.empty((count, 2, ring.N, ring.terms), dtype=np.uint32)
            loading.load_batches(batches, loaded, k.primes, k.negatives, k.squares)
            strips.prepare(hint.low, hint.high, loaded, k.primes, k.negatives, *k.switch, k.fractions, bits, out)
        return out

    # The client's half, offline ------------------------------------------------------------------------------------

    def errors(self, rng: Words, sigma: float) -> Errors:
        return CpuErrors(rng, sigma)

    def _encrypted(self, a: U32, z: I8, secret: I8, errors: I8, ring: Ring) -> U8:
        message = errors.astype(np.int64)
        message[:, :: ring.w] += reference.subring_parts(secret, ring).astype(np.int64) * ring.scale
        out = np.empty((ring.terms, 2, ring.N), dtype=np.uint32)
        for i, table in enumerate(ring.outer):
            p = np.uint64(table.prime)
            plain, key = (
                _points(values % table.prime, table.prime, i, ring) for values in (message, z[None].astype(np.int64))
            )
            product = a[:, i].astype(np.uint64) * key % p
            out[:, i] = ((plain + p - product) % p).astype(np.uint32)
        return self.pack(out.reshape(-1, ring.N), ring.prime_bits).reshape(-1)

    def load_inner(self, a: U32, ring: Ring) -> ThreeBytes:
        k, inner = constants(ring), three_bytes(len(a), ring.m, ring.k)
        loading.load_inner(a.view(np.int32), inner.low, inner.high, k.primes, k.inner_forward)
        return inner

    def _pads(self, inner: ThreeBytes, secret: I8, errors: I8, ring: Ring) -> U32:
        k = constants(ring)
        out = room((ring.T, inner.count * ring.r), np.uint32)
        points = np.empty((1, 2, ring.m, ring.k), dtype=np.uint32)
        residues = np.stack([reference.residues(secret, table) for table in ring.inner], axis=1)
        loading.load_batches(residues[None], points, k.primes, k.negatives, k.squares)
        strips.pads(inner.low, inner.high, points[0], errors, k.primes, k.negatives, *k.lift, k.lift_shoup, out)
        return out

    def load_public(self, table: U32, ring: Ring) -> U32:
        k, tiles = constants(ring), -(-table.shape[1] // (ring.w * COLUMNS))
        points = aligned((tiles, ring.N * COLUMNS), np.uint32)
        loading.load_public(table, k.mu_prime, k.mu_forward, ring.public_bits, points)
        return points

    def _shares(self, public: U32, z: I8, slots: int, ring: Ring) -> U32:
        k, p = constants(ring), np.uint64(ring.mu.prime)
        out = room((ring.T, slots), np.uint32)
        points = reference.residues(z, ring.mu).astype(np.uint64)
        key = ((points << np.uint64(32)) % p).astype(np.uint32)
        strips.shares(public, key, k.mu_prime, k.mu_negative, k.mu_inverse, ring.public_bits, out)
        return out

    # A row, online -------------------------------------------------------------------------------------------------------

    def encrypt(self, x: F32, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[U8, F64]:
        return self._encrypt(x, scaling, pads, column, bits, np.empty((len(x), 0), np.int16))

    def encrypt_checked(self, x: F32, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[U8, F64, I16]:
        sent = np.empty((len(x), sign_sums.halves_of(x.shape[1])), np.int16)
        return *self._encrypt(x, scaling, pads, column, bits, sent), sent

    def _encrypt(self, x: F32, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int, sent: I16) -> tuple[U8, F64]:
        rows, width = x.shape
        data, tau, shown = np.empty((rows, packed_bytes(width, bits)), np.uint8), np.empty(rows), np.empty(rows)
        divisors = _NO_DIVISORS if scaling.divisors is None else scaling.divisors
        target, fixed = scaling.target, scaling.fixed
        for part, (x_, data_, tau_, shown_, sent_) in _cut(pads, x, data, tau, shown, sent):
            threads = threads_for(part.count * width)
            online.encrypt(
                x_, divisors, target, fixed, part.material, part.first, column, bits, threads, data_, tau_, shown_, sent_
            )
        return data, shown

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
        data, out = _received(data), np.empty((len(data), packed_bytes(len(weights), bits[1])), dtype=np.uint8)
        if len(shares) > 1:  # one pass over the weights for the rows of all batches
            stacked = reference.gathered(shares, column, len(weights))
            shares, column = [Rows(stacked, 0, len(stacked))], 0
        for part in shares:
            work = weights.size * len(data)
            threads, start = 1 if serial else self._products.choose(work), clock()
            online.answer(data, weights, part.material, part.first, column, bits[0], bits[1], threads, out)
            if not serial:
                self._products.took(work, threads, clock() - start)
        return out

    def decrypt(self, data: U8, scaling: Scaling, shares: Sequence[Rows], column: int, bits: int, scales: F64) -> F32:
        data, scale, bias = _received(data), scaling.scale, scaling.bias
        y = np.empty((len(data), len(scale)), np.float32)
        for part, (data_, scales_, y_) in _cut(shares, data, scales, y):
            threads = threads_for(y_.size) if part.count > 1 else 1
            online.decrypt(data_, part.material, part.first, column, bits, scales_, scale, bias, threads, y_)
        return y

    def load_vectors(self, edges: NDArray[np.int32], signs: I8, sums: NDArray[np.int16], inverse: F64) -> SignVectors:
        return checking.BlockVectors.of(edges, signs, sums, inverse)

    def decrypt_checked(
        self,
        data: U8,
        sent: I16,
        scaling: Scaling,
        shares: Sequence[Rows],
        column: int,
        bits: int,
        scales: F64,
        vectors: SignVectors,
        out: F64,
    ) -> tuple[F32, float]:
        scale: F32 = scaling.scale
        data, y = _received(data), np.empty((len(sent), len(scale)), np.float32)
        assert isinstance(vectors, checking.BlockVectors)
        block = vectors.block
        if len(sent) == 1 == len(shares):
            if not vectors.held:
                vectors.hold(scaling)
            if vectors.held[0] is scaling:
                part = shares[0]
                found = checking.decrypt_checked_row(
                    data, sent, part.material, part.first, column, bits, scales, block, y, out
                )
                return y, found
        largest, first = 0.0, 0
        for part in shares:
            last = first + part.count
            call = checking.decrypt_checked if part.count == 1 else checking.decrypt_checked_together
            mu, row, bias = part.material, part.first - first, scaling.bias
            found = call(data, sent, mu, row, column, bits, scales, scale, bias, block, first, last, y, out)
            largest, first = max(largest, found), last
        return y, largest

    def row_test(self, vectors: Sequence[tuple[SignVectors, int]], chunks: RowChunks, sums: F64, rows: F64) -> RowTest:
        return HostRowTest([own.count for own, _ in vectors], chunks, sums, rows, row_test.add_row)

    def finite(self, scales: F64) -> bool:
        return math.isfinite(scales[0]) if len(scales) == 1 else bool(np.isfinite(scales).all())

    def prefetch(self, weights: I8) -> Iterator[object]:
        """The beginning comes last, because it is wanted first."""
        most = min(weights.size, _PREFETCHED_BYTES)
        for first in reversed(range(0, most, STEP_BYTES)):
            yield online.read_lines(weights, first, min(most, first + STEP_BYTES))

    # Pieces of the above -------------------------------------------------------------------------------------------------

    def matmul(self, weights: I8, rows: U32) -> U32:
        """See `reference.matmul`."""
        out = np.empty((len(rows), len(weights)), dtype=np.uint32)
        if out.size:
            product.matmul(weights, rows, all_threads(), out)
        return out

    def pack(self, values: U32, bits: int) -> U8:
        """See `reference.pack`."""
        out = np.empty((len(values), packed_bytes(values.shape[1], bits)), dtype=np.uint8)
        packing.pack(values, bits, threads_for(values.size), out)
        return out

    def unpack(self, data: U8, count: int, bits: int) -> U32:
        """See `reference.unpack`."""
        out = np.empty((len(data), count), dtype=np.uint32)
        packing.unpack(_received(data), bits, threads_for(out.size), out)
        return out


def _cut(parts: Sequence[Rows], *arrays: Array) -> Iterable[tuple[Rows, Sequence[Array]]]:
    """Each part, and its rows of the arrays; a token's one part has them as they are."""
    if len(parts) == 1:
        return ((parts[0], arrays),)
    edges = [0, *itertools.accumulate(part.count for part in parts)]
    return ((part, [own[first : first + part.count] for own in arrays]) for part, first in zip(parts, edges, strict=False))


def _received(data: U8) -> U8:
    """Bytes as those off the wire are, read-only: kernels are compiled for no other array of them."""
    data = data.view()
    data.setflags(write=False)
    return data


def _points(values: NDArray[np.int64], prime: int, which: int, ring: Ring) -> NDArray[np.uint64]:
    """Residues [count, N] as points of an outer prime."""
    tiles = -(-len(values) // COLUMNS)
    padded = np.zeros((tiles * COLUMNS, ring.N), dtype=np.int64)
    padded[: len(values)] = values
    out = np.empty((tiles, ring.N * COLUMNS), dtype=np.uint32)
    loading.small_ntt(padded, out, np.uint32(prime), constants(ring).outer_forward[which])
    points = out.reshape(tiles, ring.N, COLUMNS).transpose(0, 2, 1).reshape(-1, ring.N)
    return points[: len(values)].astype(np.uint64)
