"""The numbers of a ring as the Numba kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.transform import forward_factors, inverse_factors
from veil.kernels.ring import Ring
from veil.kernels.tables import shoup

U32 = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class CpuConstants:
    """`Ring` as the Numba kernels take it."""

    primes: U32
    negatives: U32
    squares: U32
    outer_forward: U32
    inner_forward: U32
    switch: tuple[U32, U32]
    lift: tuple[U32, U32]
    lift_shoup: U32
    fractions: NDArray[np.uint64]
    mu_prime: np.uint32
    mu_negative: np.uint32
    mu_forward: U32
    mu_inverse: U32


@lru_cache(maxsize=8)
def constants(ring: Ring) -> CpuConstants:
    """The constants of a ring, once."""
    p2 = ring.primes[1]
    inverse_of_first = np.array([ring.crt[1]], dtype=np.uint32)
    return CpuConstants(
        primes=np.array(ring.primes, dtype=np.uint32),
        negatives=np.array([_negative_inverse(p) for p in ring.primes], dtype=np.uint32),
        squares=np.array([(1 << 64) % p for p in ring.primes], dtype=np.uint32),
        outer_forward=np.stack([forward_factors(table) for table in ring.outer]),
        inner_forward=np.stack([forward_factors(table) for table in ring.inner]),
        switch=(inverse_factors(ring.outer[0], ring.crt[0]), inverse_factors(ring.outer[1], ring.crt[1])),
        lift=(inverse_factors(ring.inner[0]), inverse_factors(ring.inner[1], ring.crt[1])),
        lift_shoup=np.concatenate([inverse_of_first, shoup(inverse_of_first, p2)]),
        fractions=np.array(ring.fractions, dtype=np.uint64),
        mu_prime=np.uint32(ring.mu.prime),
        mu_negative=np.uint32(_negative_inverse(ring.mu.prime)),
        mu_forward=forward_factors(ring.mu),
        mu_inverse=inverse_factors(ring.mu),
    )


def _negative_inverse(p: int) -> int:
    return -pow(p, -1, 1 << 32) % (1 << 32)
