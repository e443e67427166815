"""Secret randomness: secrets and errors, from the operating system's entropy. Client only.

`veil.seed` has the public kind; they are different types in different modules, and neither is global: randomness is
always an argument.
"""

from __future__ import annotations

import hashlib
import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from veil.kernels.memory import room

_ZEROS = memoryview(bytes(1 << 18))

_forks = 0
"""How often this process was forked from another that had loaded veil."""


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class ProcessMark:
    """The process that made it. Whoever holds secrets asks ``here`` before using them: after a fork there are two of it.

    Two processes that went on with one state would send different rows under one secret and draw the same words. The mark
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
        """Uniform 64-bit words [count]."""
        return self._bytes(8 * count).view("<u8")

    def words16(self, count: int) -> NDArray[np.uint16]:
        """Uniform 16-bit words [count]."""
        return self._bytes(2 * count).view("<u2")

    def ternary(self, count: int) -> NDArray[np.int8]:
        """``count`` uniform values of {-1, 0, 1}, by rejection from bytes below 255."""
        parts: list[NDArray[np.int8]] = []
        missing = count
        while missing > 0:
            raw = self._bytes(missing + missing // 64 + 16)
            raw = raw[raw < 255][:missing]
            parts.append((raw % 3).astype(np.int8) - np.int8(1))
            missing -= raw.size
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int8)

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        if count > self._left or not self._mark.here:  # a fork has its parent's stream
            self._rekey(os.urandom(32))
        self._left -= count
        out = room((count,), np.uint8)
        view = out.data
        for start in range(0, count, len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            self._stream.update_into(_ZEROS[: len(part)], part)
        return out

    def __repr__(self) -> str:
        return "<SecretRng>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secret randomness cannot be pickled or copied")
