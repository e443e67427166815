"""The online steps in NumPy: the definition of correct for every processor's kernels. Clear before fast.

All integers are modulo 2^32. A word of k bits on the way stands for its value times 2^(32-k): the top bits of 32. ``row0``
and ``col0`` say where the rows of a call begin in matrices that hold more of them: shares, pads and μ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a row of words."""
    return -(-count * bits // 8)


def pack(values: U32, bits: int) -> U8:
    """Words [T, count] below 2^bits → bytes [T, ceil(count·bits/8)], little-endian bit order, each row padded with zeros."""
    shifts = np.arange(bits, dtype=np.uint32)
    binary = ((values[:, :, None] >> shifts) & np.uint32(1)).astype(np.uint8)
    return np.packbits(binary.reshape(len(values), values.shape[1] * bits), axis=1, bitorder="little")


def unpack(data: U8, count: int, bits: int) -> U32:
    """Inverse of `pack`: bytes [T, ceil(count·bits/8)] → words [T, count]."""
    binary = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits]
    weights = np.uint32(1) << np.arange(bits, dtype=np.uint32)
    return (binary.reshape(len(data), count, bits) * weights).sum(axis=2, dtype=np.uint32)


def top_bits(values: U32, bits: int) -> U32:
    """Words rounded to their top bits, halves up; they wrap."""
    if bits == 32:
        return values
    return (values + np.uint32(1 << (31 - bits))) >> np.uint32(32 - bits)


def matmul(weights: I8, rows: U32) -> U32:
    """``W·x`` modulo 2^32: weights [out, d] int8, rows [T, d] → [T, out]."""
    return rows @ weights.astype(np.uint32).T


def answer(data: U8, weights: I8, shares: U32, row0: int, col0: int, input_bits: int, result_bits: int) -> U8:
    """The server's step: packed rows [T, bytes] → packed ``W·b - shares`` [T, bytes], rounded to the top ``result_bits``."""
    rows = unpack(data, weights.shape[1], input_bits) << np.uint32(32 - input_bits)
    part = shares[row0 : row0 + len(data), col0 : col0 + len(weights)]
    return pack(top_bits(matmul(weights, rows) - part, result_bits), result_bits)


def scales(x: F32, target: float, fixed: float) -> tuple[F64, F64]:
    """τ of rows [T, d], already divided, that are encrypted, and the τ by which results are read.

    τ is ``target / ‖x‖₂``, 0 for a row of zeros, NaN for a row that is not finite. With a ``fixed`` norm above 0, τ is at
    most ``target / fixed``, also for a row of zeros, and the results of rows that are finite are read by ``target / fixed``.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1))
    tau = np.zeros(len(x))
    np.divide(target, norms, out=tau, where=norms != 0)
    tau[~np.isfinite(norms)] = np.nan
    if not fixed:
        return tau, tau
    limit = target / fixed
    return np.where(tau == 0, limit, np.minimum(tau, limit)), np.where(np.isnan(tau), np.nan, limit)


def encrypt(x: F32, tau: F64, pads: U32, row0: int, col0: int, bits: int) -> U8:
    """``round(τ·x) + pads`` of rows [T, d], already divided, rounded to the top ``bits`` and packed.

    A row whose τ is NaN is zeros.
    """
    fine = np.isfinite(tau)
    message = np.zeros(x.shape, dtype=np.uint32)
    message[fine] = np.rint(x[fine].astype(np.float64) * tau[fine, None]).astype(np.int64).astype(np.uint32)
    part = pads[row0 : row0 + len(x), col0 : col0 + x.shape[1]]
    out = pack(top_bits(message + part, bits), bits)
    out[~fine] = 0
    return out


def divided(x: F32, divisors: F32) -> F32:
    """Rows over one divisor for each column, in float32; an empty array divides nothing."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return x / divisors if divisors.size else x


def decrypt(data: U8, mu: U32, row0: int, col0: int, bits: int, shown: F64, scale: F32, bias: F32) -> F32:
    """``(word - μ)·(1/shown)·scale + bias`` in float64, as float32 [T, out]; where ``shown`` is 0, the bias."""
    words = unpack(data, len(scale), bits) << np.uint32(32 - bits)
    values = (words - mu[row0 : row0 + len(data), col0 : col0 + len(scale)]).view(np.int32)
    inverse = np.zeros(len(shown))
    np.divide(1.0, shown, out=inverse, where=shown != 0)
    return (values * inverse[:, None] * scale.astype(np.float64) + bias).astype(np.float32)
