"""Arrays that begin at a cache line, and large ones whose memory is used again.

NumPy aligns to 16 bytes, so that every vector of 64 bytes lies in two cache lines; the Ĥ product of 16 masks took a fifth
longer. And the system clears memory before it gives it: for the leaves and products of 16 masks, 5 to 10 ms a batch.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

S = TypeVar("S", bound=np.generic)
DType = type[S] | np.dtype[S]

LINE_BYTES = 64
_KEPT = 4
"""Rooms that wait for their next use: shares of both sides, pads and random bytes of a batch."""

_lock = threading.Lock()
_left: deque[NDArray[np.uint8]] = deque(maxlen=_KEPT)  # finalizers append to it at any moment, so they take no lock


def aligned(shape: tuple[int, ...], dtype: DType[S]) -> NDArray[S]:
    """An array like `np.empty` that begins at a cache line."""
    return _placed(np.empty(_bytes(shape, dtype) + LINE_BYTES, dtype=np.uint8), shape, dtype)


def room(shape: tuple[int, ...], dtype: DType[S]) -> NDArray[S]:
    """`aligned`, in memory that an earlier room left when the last array in it went away. Thread safe."""
    needed = _bytes(shape, dtype) + LINE_BYTES
    block = _fitting(needed)
    if block is None:
        block = np.empty(needed, dtype=np.uint8)
    whole = np.frombuffer(block.data, dtype=np.uint8)  # views keep it alive, because its base is no array
    weakref.finalize(whole, _left.append, block).atexit = False
    return _placed(whole, shape, dtype)


def in_one_block(shapes: Sequence[tuple[int, ...]], dtype: DType[S]) -> tuple[NDArray[S], ...]:
    """Arrays like `np.empty`, each at a line, one after the other in one block.

    The system gives large blocks in large pages, and what is read ahead of an array's end is the next one's beginning.
    """
    steps = [-(-_bytes(shape, dtype) // LINE_BYTES) * LINE_BYTES for shape in shapes]
    block = aligned((sum(steps),), np.uint8)
    starts = accumulate(steps, initial=0)
    return tuple(_placed(block[start:], shape, dtype) for start, shape in zip(starts, shapes, strict=False))


def side_by_side(matrices: list[NDArray[S]]) -> tuple[NDArray[S], ...]:
    """Copies of matrices of one dtype, `in_one_block`; the list is emptied, to free what is copied."""
    if not matrices:
        return ()
    placed = in_one_block([matrix.shape for matrix in matrices], matrices[0].dtype)
    for own in placed:
        own[:] = matrices.pop(0)
    return placed


def _fitting(nbytes: int) -> NDArray[np.uint8] | None:
    """The smallest block that waits and is large enough; None if there is none, and then the oldest of several goes."""
    with _lock:
        waiting = []
        with suppress(IndexError):
            while True:
                waiting.append(_left.popleft())
        found = min((block for block in waiting if block.size >= nbytes), key=lambda block: block.size, default=None)
        if found is None and len(waiting) == _KEPT:
            waiting.pop(0)
        _left.extend(block for block in waiting if block is not found)
        return found


def _placed(block: NDArray[np.uint8], shape: tuple[int, ...], dtype: DType[S]) -> NDArray[S]:
    start = -block.ctypes.data % LINE_BYTES
    return block[start : start + _bytes(shape, dtype)].view(dtype).reshape(shape)


def _bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
