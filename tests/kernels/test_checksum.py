"""The checksum inside kernels is zlib's."""

from __future__ import annotations

import zlib

import numpy as np

from veil.kernels.cpu.checksum import BRAIDS, crc32


def test_every_length_gives_what_zlib_gives() -> None:
    data = np.random.default_rng(1).integers(0, 256, 4000, dtype=np.uint8)
    for length in (*range(24 * BRAIDS + 9), 3981):
        for first in (0, 3):
            assert crc32(data, first, first + length) == zlib.crc32(data[first : first + length].tobytes())
