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

_forks = 0
"""How often this process was forked from another that had loaded veil."""


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class ProcessMark:
    """The process that made it. Whoever holds secrets asks ``here`` before using them: after a fork there are two of it.

    Two processes that went on with one state would send different rows under one mask and draw the same words. The mark
    changes with every fork, also where a process number comes back, and with the number where C code forks.
    """

    def __init__(self) -> None:
        self._made = (_forks, os.getpid())

    @property
    def here(self) -> bool:
        """Whether this is still the process that made the mark."""
        return self._made == (_forks, os.getpid())

    def __reduce__(self) -> NoReturn:
        raise TypeError("what belongs to one process cannot be pickled or copied")


class SecretRng:
    """Secret randomness: ChaCha20 under a key from the operating system, rekeyed every gibibyte and after a fork.

    An instance belongs to one owner; it has no representation and cannot be pickled or copied. A process that was forked
    with one draws from a fresh key. A virtual machine that goes on twice from one snapshot is not noticed: see SECURITY.md.
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
        self._mark = ProcessMark()
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._left = self._REKEY_BYTES

    def words64(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit words."""
        return np.frombuffer(self._bytes(8 * count), dtype="<u8")

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
        if count > self._left or not self._mark.here:
            self._rekey(os.urandom(32))
        self._left -= count
        return self._stream.update(bytes(count))

    def __repr__(self) -> str:
        return "<SecretRng>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secret randomness cannot be pickled or copied")


class GaussianTable:
    """Inversion table of the rounded Gaussian ``round(sigma * g)``, to 63 bits of probability.

    ``cumulative[k]`` is ``2^63 · P(|X| ≤ k)``; a sample is the first k whose entry exceeds a uniform 63-bit word, with a
    sign from the 64th bit. ``guide[t]`` is the answer for the smallest word with top bits t, where a search may start.
    """

    GUIDE_BITS = 12

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        one = 1 << 63
        entries = []
        k = 0
        while True:
            tail = math.erfc((k + 0.5) / (sigma * math.sqrt(2)))
            entries.append(one - round(tail * one))
            if entries[-1] >= one:
                break
            k += 1
        entries[-1] = one
        self.cumulative: NDArray[np.uint64] = np.array(entries, dtype=np.uint64)
        starts = np.arange(1 << self.GUIDE_BITS, dtype=np.uint64) << np.uint64(63 - self.GUIDE_BITS)
        self.guide: NDArray[np.int32] = np.searchsorted(self.cumulative, starts, side="right").astype(np.int32)
