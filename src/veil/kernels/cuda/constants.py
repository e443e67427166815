"""`Ring` on a device: primes, twiddle factors and what inverse transforms are scaled by, in Montgomery form."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray

from veil.kernels.cuda.device import put
from veil.kernels.ring import Ring
from veil.kernels.tables import NttTable

# Columns of `Constants.words`, one row for each outer prime and one for the prime of μ.
PRIME = tl.constexpr(0)
NEGATIVE = tl.constexpr(1)  # -p^-1 mod 2^32
SQUARE = tl.constexpr(2)  # 2^64 mod p
RATIO = tl.constexpr(3)  # ⌊2^32/p⌋
WORD = tl.constexpr(4)  # 2^32 mod p
SWITCH = tl.constexpr(5)  # crt_i/N, Montgomery
LIFT = tl.constexpr(6)  # 1/m, Montgomery
FIRST_INVERSE = tl.constexpr(7)  # 1/p_1 modulo p_2, Montgomery
PRODUCT = tl.constexpr(8)  # 2^32/N, Montgomery: undoes the product of two residues as well
SCALE = tl.constexpr(9)  # Δ mod p
COLUMNS = tl.constexpr(16)

MU = 2
"""The row of the prime of μ."""


class Constants(NamedTuple):
    """``words`` [3, COLUMNS]; ``outer`` [2, 2, N], ``inner`` [2, 2, m] and ``mu`` [2, N] are forward and inverse factors."""

    words: torch.Tensor
    fractions: torch.Tensor
    outer: torch.Tensor
    inner: torch.Tensor
    mu: torch.Tensor


@lru_cache(maxsize=8)
def constants(ring: Ring, device: torch.device) -> Constants:
    """The constants of a ring on a device, once."""
    words = np.zeros((3, COLUMNS.value), dtype=np.uint32)
    for i, p in enumerate((*ring.primes, ring.mu.prime)):
        entries = {
            PRIME: p,
            NEGATIVE: -pow(p, -1, 1 << 32) % (1 << 32),
            SQUARE: (1 << 64) % p,
            RATIO: (1 << 32) // p,
            WORD: (1 << 32) % p,
            SWITCH: _form(ring.crt[i] * pow(ring.N, -1, p), p) if i < MU else 0,
            LIFT: _form(pow(ring.m, -1, p), p) if i < MU else 0,
            FIRST_INVERSE: _form(ring.crt[1], p) if i == 1 else 0,
            PRODUCT: _form(pow(ring.N, -1, p) << 32, p),
            SCALE: ring.scale % p,
        }
        for column, value in entries.items():
            words[i, column.value] = value
    return Constants(
        words=put(words),
        fractions=put(np.array(ring.fractions, dtype=np.uint64)),
        outer=put(np.stack([_factors(table) for table in ring.outer])),
        inner=put(np.stack([_factors(table) for table in ring.inner])),
        mu=put(_factors(ring.mu)),
    )


def _form(value: int, p: int) -> int:
    return (value << 32) % p


def _factors(table: NttTable) -> NDArray[np.uint32]:
    both = np.stack([table.forward, table.inverse]).astype(np.uint64)
    return ((both << np.uint64(32)) % np.uint64(table.prime)).astype(np.uint32)
