"""The NumPy reference: the definition of correct for every kernel. Clear before fast.

Residues are ``uint32`` in [0, p) at every boundary. Letters are those of docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from veil.errors import WireError
from veil.kernels.gaussian import GaussianTable
from veil.kernels.interface import (
    Array,
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
from veil.kernels.memory import S
from veil.kernels.ring import FRACTION_BITS, Ring
from veil.kernels.tables import NttTable
from veil.params import packed_bytes

if TYPE_CHECKING:
    import torch

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def ntt(values: U32, table: NttTable) -> U32:
    """Negacyclic transform of residues [..., degree], in the point order of `tables`."""
    p = np.uint64(table.prime)
    work = values.reshape(-1, table.degree).astype(np.uint64)
    groups, half = 1, table.degree // 2
    while half:
        view = work.reshape(-1, groups, 2, half)
        twiddles = table.forward[groups : 2 * groups].astype(np.uint64)[None, :, None]
        low, high = view[:, :, 0].copy(), view[:, :, 1] * twiddles % p
        view[:, :, 0], view[:, :, 1] = (low + high) % p, (low + p - high) % p
        groups, half = 2 * groups, half // 2
    return work.reshape(values.shape).astype(np.uint32)


def intt(values: U32, table: NttTable) -> U32:
    """Inverse of `ntt`."""
    p = np.uint64(table.prime)
    work = values.reshape(-1, table.degree).astype(np.uint64)
    groups, half = table.degree // 2, 1
    while groups:
        view = work.reshape(-1, groups, 2, half)
        twiddles = table.inverse[groups : 2 * groups].astype(np.uint64)[None, :, None]
        low, high = view[:, :, 0].copy(), view[:, :, 1].copy()
        view[:, :, 0], view[:, :, 1] = (low + high) % p, (low + p - high) % p * twiddles % p
        groups, half = groups // 2, 2 * half
    return (work * np.uint64(table.degree_inverse) % p).reshape(values.shape).astype(np.uint32)


def residues(values: NDArray[np.generic], table: NttTable) -> U32:
    """Points of signed polynomials [..., degree] modulo one prime."""
    return ntt((values.astype(np.int64) % table.prime).astype(np.uint32), table)


def inner_matrix(a: U32, ring: Ring) -> U32:
    """A in the order of G: [n, elements·r], entry ``((i, v, t), (c, u))`` is coefficient ``t·r + u - v`` of a_{c,i}."""
    extended = np.concatenate([np.uint32(0) - a, a], axis=2)
    t, u = np.arange(ring.T)[:, None] * ring.r, np.arange(ring.r)[None]
    parts = [extended[:, i][:, t + u - v + ring.m] for i in range(ring.k) for v in range(ring.r)]
    return np.concatenate([part.transpose(1, 0, 2).reshape(ring.T, -1) for part in parts])


def rounded_hint(products: U32, ring: Ring) -> I32:
    """``round(H / 2^(32 - ℓ_h))`` of words modulo 2^32, centred."""
    bits = ring.hint_bits
    rounded = (products + np.uint32(1 << (31 - bits))) >> np.uint32(32 - bits)
    centred = rounded.astype(np.int32)
    centred[centred >= 1 << (bits - 1)] -= 1 << bits
    return centred


def switched(values: U32, bits: int, ring: Ring) -> U32:
    """Coefficients [2, ...] modulo both primes → ``round(x·2^bits/Q)`` modulo 2^bits, by 54-bit fractions of residues."""
    total = np.zeros(values.shape[1:], dtype=np.uint64)
    for i, p in enumerate(ring.primes):
        total += values[i].astype(np.uint64) * np.uint64(ring.crt[i]) % np.uint64(p) * np.uint64(ring.fractions[i])
    rounded = (total + np.uint64(1 << (FRACTION_BITS - 1 - bits))) >> np.uint64(FRACTION_BITS - bits)
    return (rounded & np.uint64((1 << bits) - 1)).astype(np.uint32)


def lifted(values: U32, ring: Ring) -> U32:
    """Coefficients [2, ...] modulo both primes → the integer nearest zero, modulo 2^32; its size is below Q/2 - p1."""
    p1, p2 = ring.primes
    first, second = values[0].astype(np.uint64), values[1].astype(np.uint64)
    factor = (second + np.uint64(p2) - first % np.uint64(p2)) * np.uint64(ring.crt[1]) % np.uint64(p2)
    whole = first + np.uint64(p1) * factor
    whole = np.where(factor > np.uint64(p2 // 2), whole - np.uint64(p1 * p2), whole)
    return (whole & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def subring_parts(secret: I8, ring: Ring) -> I8:
    """The subring elements [terms, T] of a secret [k, m]: part ``i·r + v`` has coefficients ``u·r + v`` of element i."""
    return np.ascontiguousarray(secret.reshape(ring.k, ring.T, ring.r).transpose(0, 2, 1)).reshape(ring.terms, ring.T)


def pack(values: U32, bits: int) -> U8:
    """Words [R, count] below 2^bits → bytes [R, ceil(count·bits/8)], little-endian bit order, each row padded with zeros."""
    shifts = np.arange(bits, dtype=np.uint32)
    binary = ((values[:, :, None] >> shifts) & np.uint32(1)).astype(np.uint8)
    return np.packbits(binary.reshape(len(values), values.shape[1] * bits), axis=1, bitorder="little")


def unpack(data: U8, count: int, bits: int) -> U32:
    """Inverse of `pack`: bytes [R, ceil(count·bits/8)] → words [R, count]."""
    binary = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits]
    weights = np.uint32(1) << np.arange(bits, dtype=np.uint32)
    return (binary.reshape(len(data), count, bits) * weights).sum(axis=2, dtype=np.uint32)


def matmul(weights: I8, rows: U32) -> U32:
    """``W·x`` modulo 2^32: weights [out, d] int8, rows [R, d] → [R, out]."""
    wide = weights.astype(np.int32).view(np.uint32)
    out = np.empty((len(rows), len(wide)), dtype=np.uint32)
    for row, x in zip(out, rows, strict=True):
        row[:] = (wide * x[None]).sum(axis=1, dtype=np.uint32)
    return out


def top_bits(values: U32, bits: int) -> U32:
    """Words modulo 2^32 rounded to their top ``bits``."""
    return values if bits == 32 else (values + np.uint32(1 << (31 - bits))) >> np.uint32(32 - bits)


def gathered(rows: Sequence[Rows], column: int, width: int) -> U32:
    """The words [R, width] from ``column`` on of rows of several batches."""
    parts = [part.material[part.first : part.first + part.count, column : column + width] for part in rows]
    return np.concatenate(parts) if parts else np.empty((0, width), dtype=np.uint32)


def row_scales(x: F32, target: float, fixed: float) -> tuple[F64, F64]:
    """τ of each row, and the scale that its results are scaled back by; see `interface.Scaling`."""
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1))
    tau = np.zeros(len(x))
    np.divide(target, norms, out=tau, where=norms != 0)
    tau[~np.isfinite(norms)] = np.nan
    if not fixed:
        return tau, tau
    shown = np.where(np.isnan(tau), np.nan, target / fixed)
    return np.where(tau == 0, shown, np.minimum(tau, shown)), shown


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


class ReferenceKernels:
    """See `interface.Kernels`."""

    name = "reference"
    asks_cheaply = True
    joins_groups = False

    def asarray(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        return values

    def to_numpy(self, values: NDArray[S]) -> NDArray[S]:
        return values

    def from_torch(self, values: torch.Tensor) -> NDArray[np.generic]:
        return values.detach().cpu().contiguous().numpy()

    def to_torch(self, values: NDArray[np.generic]) -> torch.Tensor:
        import torch

        return torch.from_numpy(values)

    def zeros(self, *shape: int) -> U32:
        return np.zeros(shape, dtype=np.uint32)

    def pack(self, values: U32, bits: int) -> U8:
        return pack(values, bits)

    def unpack(self, data: U8, count: int, bits: int) -> U32:
        return unpack(data, count, bits)

    def concatenate(self, parts: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def synchronize(self) -> None:
        return

    # The server's half, once ---------------------------------------------------------------------------------------------

    def load_weights(self, weights: Sequence[I8]) -> list[I8]:
        return list(weights)

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

    def decode_batches(self, data: U8, ring: Ring) -> U32:
        size = packed_bytes(ring.N, ring.prime_bits)
        if data.ndim != 2 or data.shape[1] != ring.terms * 2 * size:
            raise WireError(f"{data.shape} bytes of batches, expected {ring.terms * 2 * size} for each")
        words = unpack(data.reshape(-1, size), ring.N, ring.prime_bits).reshape(-1, ring.terms, 2, ring.N)
        check_residues(words, ring)
        return words

    # The client's half, offline ------------------------------------------------------------------------------------

    def errors(self, rng: Words, sigma: float) -> Errors:
        return HostErrors(rng, sigma)

    def encrypt_batch(self, a: U32, z: I8, secret: I8, errors: I8, ring: Ring) -> U8:
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

    def pads(self, inner: U32, secret: I8, errors: I8, ring: Ring) -> U32:
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

    def shares(self, public: U32, z: I8, slots: int, ring: Ring) -> U32:
        p = np.uint64(ring.mu.prime)
        product = intt((public.astype(np.uint64) * residues(z, ring.mu) % p).astype(np.uint32), ring.mu).astype(np.int64)
        product[product > ring.mu.prime // 2] -= ring.mu.prime
        words = (product.astype(np.uint32) << np.uint32(32 - ring.public_bits)).reshape(-1, ring.T, ring.w)
        return np.ascontiguousarray(words.transpose(1, 0, 2).reshape(ring.T, -1)[:, :slots])

    # A row, online -------------------------------------------------------------------------------------------------------

    def encrypt(self, x: F32, scaling: Scaling, pads: Sequence[Rows], column: int, bits: int) -> tuple[U8, F64]:
        divided = x if scaling.divisors is None else x / scaling.divisors
        tau, shown = row_scales(divided, scaling.target, scaling.fixed)
        good = np.isfinite(tau)
        message = np.zeros(x.shape, dtype=np.uint32)
        message[good] = np.rint(divided[good].astype(np.float64) * tau[good, None]).astype(np.int64).astype(np.uint32)
        data = pack(top_bits(message + gathered(pads, column, x.shape[1]), bits), bits)
        data[~good] = 0
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
        up, down = bits
        rows = unpack(data, weights.shape[1], up) << np.uint32(32 - up)
        return pack(top_bits(matmul(weights, rows) - gathered(shares, column, len(weights)), down), down)

    def joined(self) -> JoinedProduct | None:
        return None

    def address(self, values: NDArray[np.generic]) -> int:
        return values.ctypes.data

    def answer_groups(self, asked: Sequence[GroupRows]) -> GroupResults:
        return answer_each(self, asked)

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
        x: F32,
        scaling: Scaling,
        shares: Sequence[Rows],
        column: int,
        bits: int,
        scales: F64,
        vectors: SignVectors,
        out: F64,
    ) -> tuple[F32, float]:
        divided = x if scaling.divisors is None else x / scaling.divisors
        tau, _ = row_scales(divided, scaling.target, scaling.fixed)
        good = np.isfinite(tau)
        message = np.zeros(x.shape, dtype=np.int64)
        message[good] = np.rint(divided[good].astype(np.float64) * tau[good, None]).astype(np.int64)
        slots = int(vectors.edges[-1])
        words = unpack(data, slots, bits) << np.uint32(32 - bits)
        values = (words - gathered(shares, column, slots)).view(np.int32).astype(np.int64)
        signed = vectors.signs.astype(np.int64)[None] * values[:, None]
        got = np.add.reduceat(signed, vectors.edges[:-1], axis=2).transpose(0, 2, 1)
        expected = np.einsum("kji,ri->rkj", vectors.sums.astype(np.int64), message)
        residuals = (got - expected).astype(np.uint32).view(np.int32) * vectors.inverse
        residuals[~good] = 0.0
        out[:] = residuals.reshape(len(x), -1)
        return self.decrypt(data, scaling, shares, column, bits, scales), float(np.abs(out).max(initial=0.0))

    def finite(self, scales: F64) -> bool:
        return bool(np.isfinite(scales).all())

    def prefetch(self, weights: I8) -> Iterator[object]:
        return iter(())


def check_residues(words: U32, ring: Ring) -> None:
    """Raise `WireError` unless points [..., 2, N] are below their primes."""
    for i, p in enumerate(ring.primes):
        if (words[..., i, :] >= p).any():
            raise WireError(f"a coefficient is not below its modulus {p}")
