"""Constants of a negacyclic number theoretic transform, and the order of its points.

A transform of degree ``n = R²`` is six-step shaped: log2(R) stages between rows of an R × R square, a transposition, and
log2(R) stages between rows again, so that every butterfly loop runs over R contiguous words. The transposition is never
undone: point ``pos·R + c`` of the transform is the value at ``psi^(2·brv(c·R + pos) + 1)``, brv being bit reversal. Every
backend uses this order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class NttTable:
    """Twiddle factors and point order for one prime and degree; make one with `ntt_table`.

    ``forward``/``inverse`` are the powers of psi (its inverse) in bit-reversed order [n];
    ``*_lanes`` hold the twiddles of the stages after the transposition, one row of R a group [R-1, R].
    ``exponents[t]`` is the odd power of psi at which point t evaluates.
    """

    prime: int
    degree: int
    root: int
    exponents: NDArray[np.int64]
    forward: U32
    inverse: U32
    forward_lanes: U32
    inverse_lanes: U32
    degree_inverse: int
    _points: NDArray[np.int64] = field(repr=False)

    @property
    def side(self) -> int:
        """R, the square root of the degree."""
        return 1 << ((self.degree.bit_length() - 1) // 2)

    def automorphism(self, power: int) -> NDArray[np.int32]:
        """The permutation ``perm`` with ``ntt(f(X^power))[t] = ntt(f)[perm[t]]``, for odd ``power``."""
        wanted = self.exponents * power % (2 * self.degree)
        return self._points[wanted].astype(np.int32)

    def monomial(self, power: int) -> U32:
        """The transform of ``X^power`` (any integer power)."""
        powers = np.empty(2 * self.degree, dtype=np.uint32)
        value = 1
        for k in range(2 * self.degree):
            powers[k] = value
            value = value * self.root % self.prime
        return powers[self.exponents * power % (2 * self.degree)]


def shoup(values: U32, prime: int) -> U32:
    """``floor(w·2^32/p)``, the companion of a constant factor w."""
    return ((values.astype(np.uint64) << np.uint64(32)) // np.uint64(prime)).astype(np.uint32)


def bit_reversal(bits: int) -> NDArray[np.int64]:
    """The permutation of ``range(2^bits)`` that reverses the bits of its index."""
    order = np.zeros(1, dtype=np.int64)
    for _ in range(bits):
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


@lru_cache(maxsize=32)
def ntt_table(prime: int, degree: int) -> NttTable:
    """The table for a prime that is 1 modulo 2·degree; degree is a power of four."""
    log = degree.bit_length() - 1
    side = 1 << (log // 2)
    if side * side != degree or prime % (2 * degree) != 1:
        raise ValueError(f"no transform of degree {degree} modulo {prime}")
    root = _primitive_root(prime, 2 * degree)
    order = bit_reversal(log)
    powers = _powers(root, degree, prime)
    inverse_powers = _powers(pow(root, -1, prime), degree, prime)
    forward, inverse = powers[order], inverse_powers[order]
    index = np.arange(degree)
    standard = (index % side) * side + index // side
    exponents = 2 * order[standard] + 1
    points = np.full(2 * degree, -1, dtype=np.int64)
    points[exponents] = index
    return NttTable(
        prime,
        degree,
        root,
        exponents,
        forward,
        inverse,
        _lanes(forward, side),
        _lanes(inverse, side),
        pow(degree, -1, prime),
        points,
    )


def _lanes(twiddles: U32, side: int) -> U32:
    rows = []
    groups = 1
    while groups < side:
        first = side * groups
        rows.append(twiddles[first : 2 * first].reshape(side, groups).T)
        groups *= 2
    return np.ascontiguousarray(np.concatenate(rows))


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
