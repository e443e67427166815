"""Public randomness: the uniform words that both sides expand from a bundle's seed. `veil.random` has the secret kind."""

from __future__ import annotations

import hashlib
import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SEED_BYTES = 32


class PublicSeed:
    """A public 32-byte seed and the uniform words that follow from it.

    Each label has a stream of its own: AES-128 in counter mode, as FrodoKEM expands its public matrix, under a key that
    SHAKE128 makes of seed and label.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a public seed has {SEED_BYTES} bytes, got {len(seed)}")
        self.seed = bytes(seed)

    @classmethod
    def fresh(cls) -> PublicSeed:
        """A new seed from the operating system, for a new bundle."""
        return cls(os.urandom(SEED_BYTES))

    def words(self, label: str, count: int) -> NDArray[np.uint32]:
        """The first uniform 32-bit words [count] of the stream that ``label`` names."""
        key = hashlib.shake_128(b"veil.v2\0" + self.seed + label.encode() + b"\0").digest(16)
        stream = bytearray(4 * count + 15)
        Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update_into(bytes(4 * count), stream)
        return np.frombuffer(stream, dtype="<u4", count=count).astype(np.uint32, copy=False)

    def uniform(self, label: str, count: int, modulus: int) -> NDArray[np.uint32]:
        """Uniform integers [count] modulo ``modulus`` (below 2^32): masked to its bits, then rejection sampled."""
        bits = modulus.bit_length()
        accept = modulus / (1 << bits)
        drawn = math.ceil(count / accept) + 16
        while True:
            words = self.words(label, drawn) & np.uint32((1 << bits) - 1)
            kept = words[words < modulus]
            if kept.size >= count:
                return kept[:count]
            drawn += drawn // 8 + 64
