"""Constants of a negacyclic number theoretic transform, and the order of its points.

A transform of degree n evaluates a polynomial at the odd powers of psi, a primitive 2n-th root of unity modulo p. Point t
is the value at ``psi^(2·brv(t) + 1)``, brv being the reversal of log2(n) bits: the order in which Cooley-Tukey butterflies
leave it. Every backend uses this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class NttTable:
    """Twiddle factors for one prime and degree; make one with `ntt_table`.

    ``forward`` and ``inverse`` [n] are the powers of psi and of its inverse in bit-reversed order.
    """

    prime: int
    degree: int
    root: int
    forward: U32
    inverse: U32
    degree_inverse: int

    @property
    def exponents(self) -> NDArray[np.int64]:
        """The odd power of psi at which each point evaluates [n]."""
        return 2 * bit_reversal(self.degree.bit_length() - 1) + 1


def shoup(values: U32, prime: int) -> U32:
    """``floor(w·2^32/p)``, the companion of each constant factor w below p; of the same shape."""
    return ((values.astype(np.uint64) << np.uint64(32)) // np.uint64(prime)).astype(np.uint32)


def bit_reversal(bits: int) -> NDArray[np.int64]:
    """The permutation [2^bits] of ``range(2^bits)`` that reverses the bits of its index."""
    order = np.zeros(1, dtype=np.int64)
    for _ in range(bits):
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


@lru_cache(maxsize=32)
def ntt_table(prime: int, degree: int) -> NttTable:
    """The table for a prime that is 1 modulo 2·degree; degree is a power of two."""
    if degree < 2 or degree & (degree - 1) or prime % (2 * degree) != 1:
        raise ValueError(f"no transform of degree {degree} modulo {prime}")
    root = _primitive_root(prime, 2 * degree)
    order = bit_reversal(degree.bit_length() - 1)
    forward, inverse = (_powers(base, degree, prime)[order] for base in (root, pow(root, -1, prime)))
    return NttTable(prime, degree, root, forward, inverse, pow(degree, -1, prime))


def _powers(base: int, count: int, prime: int) -> U32:
    powers = np.empty(count, dtype=np.uint32)
    value = 1
    for k in range(count):
        powers[k] = value
        value = value * base % prime
    return powers


def _primitive_root(prime: int, order: int) -> int:
    """The smallest-generator element of exact order ``order`` (a power of two)."""
    for base in range(2, prime):
        root = pow(base, (prime - 1) // order, prime)
        if pow(root, order // 2, prime) == prime - 1:
            return root
    raise ValueError(f"{prime} has no root of order {order}")
