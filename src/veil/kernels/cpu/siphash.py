"""SipHash-2-4 (Aumasson and Bernstein, eprint 2012/351): whether bytes are those that came before, for who knows the key."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted

U8 = NDArray[np.uint8]

KEY = np.frombuffer(secrets.token_bytes(16), np.uint64)
"""Of this process: nobody outside can make two messages that look alike, but by chance, once in 2^64."""


@jitted(nogil=True)
def _turned(word, bits):  # type: ignore[no-untyped-def]
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@jitted(nogil=True)
def _round(a, b, c, d):  # type: ignore[no-untyped-def]
    a, c = a + b, c + d
    b, d = _turned(b, 13) ^ a, _turned(d, 16) ^ c
    a = _turned(a, 32)
    a, c = a + d, c + b
    b, d = _turned(b, 17) ^ c, _turned(d, 21) ^ a
    return a, b, _turned(c, 32), d


@jitted(nogil=True)
def siphash(data, first, last, key):  # type: ignore[no-untyped-def]
    """The 64-bit SipHash-2-4 of the bytes [uint8] from ``first`` up to ``last`` under a key of two words, little-endian."""
    a, b = key[0] ^ np.uint64(0x736F6D6570736575), key[1] ^ np.uint64(0x646F72616E646F6D)
    c, d = key[0] ^ np.uint64(0x6C7967656E657261), key[1] ^ np.uint64(0x7465646279746573)
    count = (last - first) // 8
    words = data[first : first + 8 * count].view(np.uint64)
    for place in range(count):
        word = words[place]
        d ^= word
        a, b, c, d = _round(a, b, c, d)
        a, b, c, d = _round(a, b, c, d)
        a ^= word
    word = np.uint64(last - first) << np.uint64(56)
    for place in range(first + 8 * count, last):
        word |= np.uint64(data[place]) << np.uint64(8 * (place - first - 8 * count))
    d ^= word
    a, b, c, d = _round(a, b, c, d)
    a, b, c, d = _round(a, b, c, d)
    a, c = a ^ word, c ^ np.uint64(255)
    for _ in range(4):
        a, b, c, d = _round(a, b, c, d)
    return a ^ b ^ c ^ d


def digest_of(data: Any) -> int:
    """`siphash` of an object's bytes under this process's `KEY`."""
    own: U8 = np.frombuffer(data, np.uint8)
    return int(siphash(own, 0, own.size, KEY))
