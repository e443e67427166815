"""SipHash against the vectors of its authors."""

from __future__ import annotations

import numpy as np
import pytest

from veil.kernels.cpu.siphash import digest_of, siphash

KEY = np.frombuffer(bytes(range(16)), np.uint64)
VECTORS = {
    0: 0x726FDB47DD0E0E31,
    1: 0x74F839C593DC67FD,
    7: 0xAB0200F58B01D137,
    8: 0x93F5F5799A932462,
    15: 0xA129CA6149BE45E5,
}
"""Of the bytes 0, 1, 2, … so many, under the key 00 01 … 0f: the paper's appendix, and the reference code's list."""


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("first", [0, 3, 8])
def test_the_authors_vectors(count: int, first: int) -> None:
    data = np.concatenate([np.full(first, 9, np.uint8), np.arange(count, dtype=np.uint8), np.full(5, 7, np.uint8)])
    assert int(siphash(data, first, first + count, KEY)) == VECTORS[count]


def test_digests_tell_bytes_apart() -> None:
    data = np.arange(100, dtype=np.uint8)
    other = data.copy()
    other[99] ^= 1
    assert digest_of(data) == digest_of(data.tobytes()) == digest_of(data.data) != digest_of(other)
    assert digest_of(b"") != digest_of(b"\0")
