"""The steps of the scheme in NumPy: the definition of correct for every kernel. Clear before fast.

Residues are ``uint32`` in [0, p) at every boundary. Letters are those of docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from veil.errors import WireError
from veil.kernels.interface import (
    Rows,
)
from veil.kernels.ring import FRACTION_BITS, Ring
from veil.kernels.tables import NttTable

if TYPE_CHECKING:
    pass

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


def check_residues(words: U32, ring: Ring) -> None:
    """Raise `WireError` unless points [..., 2, N] are below their primes."""
    for i, p in enumerate(ring.primes):
        if (words[..., i, :] >= p).any():
            raise WireError(f"a coefficient is not below its modulus {p}")
