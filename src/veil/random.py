"""Secret randomness: keys, masks and errors, from the operating system's entropy. Client only.

`veil.seed` has the public kind; they are different types in different modules, and neither is global: randomness is
always an argument.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray


class SecretRng:
    """Secret randomness: ChaCha20 under a key from the operating system, rekeyed every gibibyte.

    An instance belongs to one owner; it has no representation and cannot be pickled or copied.
    """

    _REKEY_BYTES = 1 << 30

    def __init__(self) -> None:
        self._rekey(os.urandom(32))

    @classmethod
    def insecure_for_tests(cls, seed: int) -> SecretRng:
        """A repeatable generator, for tests only."""
        rng = cls.__new__(cls)
        rng._rekey(hashlib.sha256(b"insecure" + seed.to_bytes(8, "little")).digest())
        return rng

    def _rekey(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._left = self._REKEY_BYTES

    def words64(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit words."""
        return np.frombuffer(self._bytes(8 * count), dtype="<u8")

    def words16(self, count: int) -> NDArray[np.uint16]:
        """``count`` uniform 16-bit words."""
        return np.frombuffer(self._bytes(2 * count), dtype="<u2")

    def ternary(self, count: int) -> NDArray[np.int8]:
        """``count`` uniform values of {-1, 0, 1}, by rejection from bytes below 255."""
        parts: list[NDArray[np.int8]] = []
        missing = count
        while missing > 0:
            raw = np.frombuffer(self._bytes(missing + missing // 64 + 16), dtype=np.uint8)
            raw = raw[raw < 255][:missing]
            parts.append((raw % 3).astype(np.int8) - np.int8(1))
            missing -= raw.size
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int8)

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            self._rekey(os.urandom(32))
        self._left -= count
        return self._stream.update(bytes(count))

    def __repr__(self) -> str:
        return "<SecretRng>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secret randomness cannot be pickled or copied")


class GaussianTable:
    """Inversion table of the rounded Gaussian ``round(sigma * g)``, to 64 bits of probability.

    A sample is the least k with ``u < bounds[k]`` for a uniform 64-bit word u, minus ``largest``. ``values`` [2^16] int8 has
    the answer for each value of the word's upper 16 bits, or `UNCLEAR` where the others decide: some 30 of 65,536.
    """

    UNCLEAR = -128

    def __init__(self, sigma: float) -> None:
        if not 0 < sigma <= 12:
            raise ValueError(f"sigma is {sigma}, expected up to 12")
        self.sigma = sigma
        tails = []  # P(X > k) in units of 2^-64
        while True:
            tails.append(round(math.erfc((len(tails) + 0.5) / (sigma * math.sqrt(2))) / 2 * 2.0**64))
            if tails[-1] == 0:
                break
        self.largest = len(tails) - 1
        upper = [(1 << 64) - tail for tail in tails[:-1]]
        bounds = [*reversed(tails[:-1]), *upper]
        self.bounds: NDArray[np.uint64] = np.array(bounds, dtype=np.uint64)
        first = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
        low, high = (
            np.searchsorted(self.bounds, words, side="right") for words in (first, first + np.uint64((1 << 48) - 1))
        )
        clear = (low - self.largest).astype(np.int8)
        self.values: NDArray[np.int8] = np.where(low == high, clear, np.int8(self.UNCLEAR)).astype(np.int8)

    def resolve(self, upper: NDArray[np.uint16], lower: NDArray[np.uint64]) -> NDArray[np.int8]:
        """The samples of words with these upper 16 bits and, as their lower 48, the lower 48 of ``lower``."""
        words = (upper.astype(np.uint64) << np.uint64(48)) | (lower & np.uint64((1 << 48) - 1))
        return (np.searchsorted(self.bounds, words, side="right") - self.largest).astype(np.int8)
