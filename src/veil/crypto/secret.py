"""Secret keys and encryption. Client only: nothing that a server imports may reach this module.

RLWE in its classic form, ``b = -a·z + e + m`` (LPR, ePrint 2012/230), key switching with a special prime (GHS, ePrint
2012/099) and two RNS digits.
"""

from __future__ import annotations

from types import ModuleType
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.random import GaussianTable, SecretRng

U32 = NDArray[np.uint32]


class OuterKey:
    """The secret ``z`` of one epoch: it makes the epoch's Galois keys once and encrypts at most M masks.

    It has no representation and cannot be pickled; it lives in memory for one epoch.
    """

    def __init__(self, params: Params, kernels: ModuleType, rng: SecretRng) -> None:
        self._params = params
        self._kernels = kernels
        self._ring = ring_of(params)
        self._rng = rng
        self._errors = GaussianTable(params.spec.outer_sigma)
        self._z = rng.ternary(params.N)
        self._z_points = self._points(self._z.astype(np.int64))
        self._used: set[int] = set()

    @property
    def points(self) -> U32:
        """``z`` as points of the two outer primes [2, N], for products with public polynomials."""
        return self._z_points[:2]

    def galois_keys(self, halves: U32) -> U32:
        """The ``b`` halves for the ``a`` halves [keys, 2, 3, N] of `public.key_halves`, as points.

        Key (τ, digit j) is ``-a·z + e + P·τ(z)`` modulo p_j and ``-a·z + e`` modulo the other primes.
        """
        ring = self._ring
        out = np.empty_like(halves)
        for key, power in enumerate(self._params.automorphisms):
            moved = self._z_points[:, ring.tables[0].automorphism(power)]
            for digit in range(2):
                error = self._points(self._error(self._params.N))
                for i, p in enumerate(ring.moduli):
                    message = moved[i].astype(np.uint64) * np.uint64(ring.moduli[2]) if i == digit else np.uint64(0)
                    out[key, digit, i] = _combine(halves[key, digit, i], self._z_points[i], error[i], message, p)
        return out

    def encrypt_mask(self, index: int, half: U32, mask: NDArray[np.int8]) -> U32:
        """The ``b`` half [2, N] that encrypts an inner secret [n] under the public half of set ``index``; once each.

        Coefficient ``i + j·N/G`` holds ``Δ·2^-(L+g)·s[i·G + j]``, placed for partial expansion. A second call for the
        same set would encrypt twice under one (z, a) pair, so it is refused (`RuntimeError`).
        """
        if index in self._used or not 0 <= index < self._params.masks_per_epoch:
            raise RuntimeError(f"set {index} of this epoch was used, or is not one of {self._params.masks_per_epoch}")
        self._used.add(index)
        params = self._params
        placed = np.zeros((params.fold, params.N // params.fold), dtype=np.int64)
        placed[:, : params.leaves] = mask.reshape(params.leaves, params.fold).T
        message = self._points(placed.reshape(-1))
        error = self._points(self._error(params.N))
        out = np.empty((2, params.N), dtype=np.uint32)
        for i, p in enumerate(params.outer_primes):
            scale = params.scale * pow(2, -(params.levels + params.spec.skipped_levels), p) % p
            scaled = message[i].astype(np.uint64) * np.uint64(scale)
            out[i] = _combine(half[i], self._z_points[i], error[i], scaled, p)
        return out

    def _error(self, count: int) -> NDArray[np.int64]:
        table = self._errors
        return self._kernels.gaussian(self._rng.words64(count), table.cumulative, table.guide).astype(np.int64)

    def _points(self, values: NDArray[np.int64]) -> U32:
        """Signed coefficients [N] as points of all three primes [3, N]."""
        ring = self._ring
        residues = (values % ring.moduli_array.astype(np.int64)[:, None]).astype(np.uint32)
        return np.stack([self._kernels.ntt(residues[i : i + 1], ring.tables[i])[0] for i in range(3)])

    def __repr__(self) -> str:
        return "<OuterKey>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key cannot be pickled or copied")


def inner_secret(rng: SecretRng, params: Params) -> NDArray[np.int8]:
    """A fresh uniform ternary mask secret [n]."""
    return rng.ternary(params.n)


def secret_points(secret: NDArray[np.int8], kernels: ModuleType, ring: Ring) -> U32:
    """An inner secret [n] as points of both outer primes [2, n]."""
    points: U32 = kernels.centred_points(secret.astype(np.int32)[None], ring.inner_tables, ring)[0]
    return points


def _combine(a: U32, z: U32, error: U32, message: NDArray[np.uint64] | np.uint64, p: int) -> U32:
    modulus = np.uint64(p)
    product = a.astype(np.uint64) * z % modulus
    return ((modulus - product + error + message % modulus) % modulus).astype(np.uint32)
