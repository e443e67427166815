"""CRC-32 inside kernels: the same as `zlib.crc32`, for code that holds no interpreter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu.kept import jitted

U32 = NDArray[np.uint32]

BRAIDS = 5
"""Words of 8 bytes that are taken at once, each into a remainder of its own: their look-ups do not wait."""

_POLYNOMIAL = 0xEDB88320


def _tables(zeros: int) -> U32:
    """What a byte adds to the remainder, [8, 256]: byte j of a word that has ``zeros`` bytes behind it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    rows, row = [], table.copy()
    for behind in range(zeros + 8):
        if behind >= zeros:
            rows.append(row)
        row = (row >> 8) ^ table[row & 0xFF]
    return np.ascontiguousarray(np.stack(rows[::-1]), dtype=np.uint32)


_NEXT = _tables(0)
_BRAID = _tables(8 * (BRAIDS - 1))


@jitted(nogil=True)
def _looked_up(table, word):  # type: ignore[no-untyped-def]
    low = np.uint64(255)
    return (
        table[0, word & low]
        ^ table[1, (word >> np.uint64(8)) & low]
        ^ table[2, (word >> np.uint64(16)) & low]
        ^ table[3, (word >> np.uint64(24)) & low]
        ^ table[4, (word >> np.uint64(32)) & low]
        ^ table[5, (word >> np.uint64(40)) & low]
        ^ table[6, (word >> np.uint64(48)) & low]
        ^ table[7, word >> np.uint64(56)]
    )


@jitted(nogil=True)
def crc32(data, first, last):  # type: ignore[no-untyped-def]
    """The CRC-32 of the bytes [uint8] from ``first`` up to ``last``."""
    crc, count = np.uint32(0xFFFFFFFF), (last - first) // 8
    words = data[first : first + 8 * count].view(np.uint64)
    blocks, at = count // BRAIDS - 1, 0
    if blocks > 0:
        a, b, c, d, e = np.uint32(crc), np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
        for block in range(blocks):
            at = np.uint64(BRAIDS * block)
            a = _looked_up(_BRAID, np.uint64(a) ^ words[at])
            b = _looked_up(_BRAID, np.uint64(b) ^ words[at + np.uint64(1)])
            c = _looked_up(_BRAID, np.uint64(c) ^ words[at + np.uint64(2)])
            d = _looked_up(_BRAID, np.uint64(d) ^ words[at + np.uint64(3)])
            e = _looked_up(_BRAID, np.uint64(e) ^ words[at + np.uint64(4)])
        begin = BRAIDS * blocks
        crc = _looked_up(_NEXT, np.uint64(a) ^ words[begin])
        crc = _looked_up(_NEXT, np.uint64(crc ^ b) ^ words[begin + 1])
        crc = _looked_up(_NEXT, np.uint64(crc ^ c) ^ words[begin + 2])
        crc = _looked_up(_NEXT, np.uint64(crc ^ d) ^ words[begin + 3])
        crc = _looked_up(_NEXT, np.uint64(crc ^ e) ^ words[begin + 4])
        begin += BRAIDS
    else:
        begin = 0
    for place in range(begin, count):
        crc = _looked_up(_NEXT, np.uint64(crc) ^ words[place])
    for at in range(first + 8 * count, last):
        crc = (crc >> np.uint32(8)) ^ _NEXT[7, (crc ^ np.uint32(data[at])) & np.uint32(255)]
    return crc ^ np.uint32(0xFFFFFFFF)
