"""Triton transforms and modular arithmetic of the CUDA backend, and the constants that its kernels read.

A polynomial is transformed by one program. Stages go two at a time (radix 4): the square of values is split into four
quarters, two lazy butterflies (Harvey, arXiv 1205.2926) run between them, and they are joined again; Triton moves the
values between threads through shared memory. A factor w is kept as ``w·2^32 mod p`` and multiplied by Montgomery's method.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from veil.kernels.ring import Ring
from veil.kernels.tables import NttTable

WARPS = 8
"""Warps of a program that transforms one polynomial of the outer ring."""

# Columns of `Constants.words`, one row a prime.
PRIME = tl.constexpr(0)
NEGATIVE = tl.constexpr(1)  # -p^-1 mod 2^32
SQUARE = tl.constexpr(2)  # 2^64 mod p
RATIO = tl.constexpr(3)  # ⌊2^32/p⌋
WORD = tl.constexpr(4)  # 2^32 mod p
SPECIAL = tl.constexpr(5)  # P, Montgomery
SPECIAL_INVERSE = tl.constexpr(6)  # 1/P, Montgomery
CRT_INVERSE = tl.constexpr(7)  # (p/(QP)) mod p, Montgomery
DEGREE_INVERSE = tl.constexpr(8)  # 1/N, Montgomery
INNER_DEGREE_INVERSE = tl.constexpr(9)  # 1/n, Montgomery
CENTRE = tl.constexpr(10)  # columns 10, 11, 12: -p_j mod p for j = 0, 1, 2
FIRST_INVERSE = tl.constexpr(13)  # 1/p_1, Montgomery
COLUMNS = tl.constexpr(16)


class Constants(NamedTuple):
    """`Ring` on a device; factors in Montgomery form.

    ``twiddles`` [3, 2, N] and ``inner_twiddles`` [2, 2, n]: forward, inverse, in bit-reversed order.
    """

    words: torch.Tensor
    fractions: torch.Tensor
    twiddles: torch.Tensor
    inner_twiddles: torch.Tensor
    automorphisms: torch.Tensor
    rotations: torch.Tensor
    inverse_rotations: torch.Tensor
    monomials: torch.Tensor
    folds: torch.Tensor


@lru_cache(maxsize=16)
def constants(ring: Ring, device: torch.device) -> Constants:
    """The constants of a ring on a device, once."""
    moduli, special = ring.moduli, ring.moduli[2]
    words = np.zeros((3, COLUMNS.value), dtype=np.uint32)
    for i, p in enumerate(moduli):

        def montgomery_form(value: int, p: int = p) -> int:
            return (value << 32) % p

        words[i, PRIME.value] = p
        words[i, NEGATIVE.value] = -pow(p, -1, 1 << 32) % (1 << 32)
        words[i, SQUARE.value] = (1 << 64) % p
        words[i, RATIO.value] = (1 << 32) // p
        words[i, WORD.value] = (1 << 32) % p
        if i < 2:
            words[i, SPECIAL.value] = montgomery_form(special)
            words[i, SPECIAL_INVERSE.value] = montgomery_form(pow(special, -1, p))
            words[i, INNER_DEGREE_INVERSE.value] = montgomery_form(pow(ring.n, -1, p))
        words[i, CRT_INVERSE.value] = montgomery_form(ring.crt_inverse[i])
        words[i, DEGREE_INVERSE.value] = montgomery_form(pow(ring.N, -1, p))
        for j in range(3):
            words[i, CENTRE.value + j] = -moduli[j] % p
    words[1, FIRST_INVERSE.value] = (pow(moduli[0], -1, moduli[1]) << 32) % moduli[1]

    def put(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    folds = np.stack([_montgomery_form(ring.folds[i], moduli[i]) for i in range(2)])
    monomials = np.stack([_montgomery_form(ring.monomials[:, i], moduli[i]) for i in range(3)], axis=1)
    return Constants(
        words=put(words),
        fractions=put(np.array([(1 << 64) // p for p in moduli], dtype=np.uint64)),
        twiddles=put(np.stack([_twiddles(table) for table in ring.tables])),
        inner_twiddles=put(np.stack([_twiddles(table) for table in ring.inner_tables])),
        automorphisms=put(ring.automorphisms),
        rotations=put(ring.rotations),
        inverse_rotations=put(ring.inverse_rotations),
        monomials=put(monomials),
        folds=put(folds),
    )


@lru_cache(maxsize=32)
def table_constants(table: NttTable, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The words and the twiddles [2, degree] of a lone table, for `transform`."""
    p = table.prime
    words = np.zeros((1, COLUMNS.value), dtype=np.uint32)
    words[0, PRIME.value] = p
    words[0, NEGATIVE.value] = -pow(p, -1, 1 << 32) % (1 << 32)
    words[0, DEGREE_INVERSE.value] = (table.degree_inverse << 32) % p
    return torch.from_numpy(words).to(device), torch.from_numpy(_twiddles(table)).to(device)


def _montgomery_form(values: NDArray[np.uint32], p: int) -> NDArray[np.uint32]:
    return ((values.astype(np.uint64) << np.uint64(32)) % np.uint64(p)).astype(np.uint32)


def _twiddles(table: NttTable) -> NDArray[np.uint32]:
    return _montgomery_form(np.stack([table.forward, table.inverse]), table.prime)


# Arithmetic --------------------------------------------------------------------------------------------------------


@triton.jit
def montgomery(value, p, pn):  # type: ignore[no-untyped-def]
    """``value·2^-32`` modulo p, below ``value/2^32 + p``."""
    m = value.to(tl.uint32) * pn
    return ((value + m.to(tl.uint64) * p) >> 32).to(tl.uint32)


@triton.jit
def times(value, factor, p, pn):  # type: ignore[no-untyped-def]
    """``value·factor·2^-32`` modulo p, below 2p while ``value·factor < p·2^32``."""
    return montgomery(value.to(tl.uint64) * factor.to(tl.uint64), p, pn)


@triton.jit
def reduce(value, p):  # type: ignore[no-untyped-def]
    """A value below 2p, below p."""
    return tl.minimum(value, value - p)


@triton.jit
def centre(value, offset, ratio, half, p):  # type: ignore[no-untyped-def]
    """Residues of another modulus, centred, modulo p and below 2p; offset = -modulus mod p, ratio = ⌊2^32/p⌋."""
    v = value + tl.where(value > half, offset, 0).to(tl.uint32)
    return v - tl.umulhi(v, ratio) * p


# Transforms ---------------------------------------------------------------------------------------------------------


@triton.jit
def _quarters(x, GROUPS: tl.constexpr, QUARTER: tl.constexpr):  # type: ignore[no-untyped-def]
    """[GROUPS·4·QUARTER] → its four quarters of each group, [GROUPS·QUARTER] each."""
    y = tl.permute(tl.reshape(x, [GROUPS, 4, QUARTER]), [0, 2, 1])
    even, odd = tl.split(tl.reshape(y, [GROUPS * QUARTER, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _whole(x0, x1, x2, x3, GROUPS: tl.constexpr, QUARTER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The inverse of `_quarters`."""
    y = tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [GROUPS, QUARTER, 4])
    return tl.reshape(tl.permute(y, [0, 2, 1]), [GROUPS * 4 * QUARTER])


@triton.jit
def _forward_pair(u, v, w, p, pn):  # type: ignore[no-untyped-def]
    u = reduce(u, 2 * p)
    t = times(v, w, p, pn)
    return u + t, u - t + 2 * p


@triton.jit
def _inverse_pair(u, v, w, p, pn):  # type: ignore[no-untyped-def]
    return reduce(u + v, 2 * p), times(u - v + 2 * p, w, p, pn)


@triton.jit
def _forward_round(x, twiddles, p, pn, GROUPS: tl.constexpr, QUARTER: tl.constexpr):  # type: ignore[no-untyped-def]
    x0, x1, x2, x3 = _quarters(x, GROUPS, QUARTER)
    group = tl.arange(0, GROUPS * QUARTER) // QUARTER
    w = tl.load(twiddles + GROUPS + group)
    x0, x2 = _forward_pair(x0, x2, w, p, pn)
    x1, x3 = _forward_pair(x1, x3, w, p, pn)
    x0, x1 = _forward_pair(x0, x1, tl.load(twiddles + 2 * GROUPS + 2 * group), p, pn)
    x2, x3 = _forward_pair(x2, x3, tl.load(twiddles + 2 * GROUPS + 2 * group + 1), p, pn)
    return _whole(x0, x1, x2, x3, GROUPS, QUARTER)


@triton.jit
def _inverse_round(x, twiddles, p, pn, GROUPS: tl.constexpr, QUARTER: tl.constexpr):  # type: ignore[no-untyped-def]
    x0, x1, x2, x3 = _quarters(x, GROUPS, QUARTER)
    group = tl.arange(0, GROUPS * QUARTER) // QUARTER
    x0, x1 = _inverse_pair(x0, x1, tl.load(twiddles + 2 * GROUPS + 2 * group), p, pn)
    x2, x3 = _inverse_pair(x2, x3, tl.load(twiddles + 2 * GROUPS + 2 * group + 1), p, pn)
    w = tl.load(twiddles + GROUPS + group)
    x0, x2 = _inverse_pair(x0, x2, w, p, pn)
    x1, x3 = _inverse_pair(x1, x3, w, p, pn)
    return _whole(x0, x1, x2, x3, GROUPS, QUARTER)


@triton.jit
def _transpose(x, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    side: tl.constexpr = 1 << (LOG // 2)
    return tl.reshape(tl.trans(tl.reshape(x, [side, side])), [side * side])


@triton.jit
def forward(x, twiddles, p, pn, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Coefficients [2^LOG] below 4p → points below p, in the order of `tables`."""
    for s in tl.static_range(LOG // 2):
        x = _forward_round(x, twiddles, p, pn, 1 << (2 * s), 1 << (LOG - 2 * s - 2))
    return reduce(reduce(_transpose(x, LOG), 2 * p), p)


@triton.jit
def inverse(x, twiddles, factor, p, pn, LOG: tl.constexpr):  # type: ignore[no-untyped-def]
    """Points [2^LOG] below 2p → coefficients times ``factor`` (Montgomery form; 1/degree for the inverse), below p."""
    x = _transpose(x, LOG)
    for s in tl.static_range(LOG // 2):
        x = _inverse_round(x, twiddles + (1 << LOG), p, pn, 1 << (LOG - 2 * s - 2), 1 << (2 * s))
    return reduce(times(x, factor, p, pn), p)


@triton.jit
def transform(source, out, words, twiddles, LOG: tl.constexpr, INVERSE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One polynomial a program: [B, 2^LOG] → [B, 2^LOG]."""
    e = tl.arange(0, 1 << LOG)
    row = tl.program_id(0).to(tl.int64) << LOG
    p, pn = tl.load(words + PRIME), tl.load(words + NEGATIVE)
    x = tl.load(source + row + e)
    if INVERSE:  # noqa: SIM108
        x = inverse(x, twiddles, tl.load(words + DEGREE_INVERSE), p, pn, LOG)
    else:
        x = forward(x, twiddles, p, pn, LOG)
    tl.store(out + row + e, x)


def transform_batch(values: torch.Tensor, out: torch.Tensor, table: NttTable, inverse: bool) -> None:
    """Transform each row of ``values`` [B, degree] into ``out``."""
    words, twiddles = table_constants(table, values.device)
    if len(values):
        log = table.degree.bit_length() - 1
        transform[(len(values),)](values, out, words, twiddles, log, inverse, num_warps=warps(table.degree))


def warps(degree: int) -> int:
    """Warps of a program that transforms one polynomial of this degree."""
    return max(1, min(WARPS, degree // 128))
