"""Arrays that begin at a cache line, and large ones whose memory is used again.

NumPy aligns to 16 bytes, so that every vector of 64 bytes lies in two cache lines. And the system clears memory before it
gives it, a virtual machine may even have to be given it: a batch of SmolLM2 is 105 MB, which cost 0.1 to 4 ms a row.
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
_KEPT_BYTES = 1 << 30
"""Of rooms that wait for their next use: the batches of a prompt of 512 rows of SmolLM2, both sides."""

_WASTE = 2
"""A block serves what is smaller by this factor at most."""

_lock = threading.Lock()
_left: deque[NDArray[np.uint8]] = deque()  # the oldest first; finalizers append to it at any moment


def aligned(shape: tuple[int, ...], dtype: DType[S]) -> NDArray[S]:
    """An array of this shape and dtype, like `np.empty`, that begins at a cache line."""
    return _placed(np.empty(_bytes(shape, dtype) + LINE_BYTES, dtype=np.uint8), shape, dtype)


def room(shape: tuple[int, ...], dtype: DType[S]) -> NDArray[S]:
    """`aligned` of a shape and dtype, in memory that an earlier room's last array left when it went. Thread safe."""
    needed = _bytes(shape, dtype) + LINE_BYTES
    block = _fitting(needed)
    if block is None:
        block = np.empty(needed, dtype=np.uint8)
    whole = np.frombuffer(block.data, dtype=np.uint8)  # views keep it alive, because its base is no array
    weakref.finalize(whole, _leave, block).atexit = False
    return _placed(whole, shape, dtype)


def in_one_block(shapes: Sequence[tuple[int, ...]], dtype: DType[S]) -> tuple[NDArray[S], ...]:
    """Arrays of these shapes and one dtype, like `np.empty`, each at a line, one after the other in one block.

    The system gives large blocks in large pages, and what is read ahead of an array's end is the next one's beginning.
    """
    steps = [-(-_bytes(shape, dtype) // LINE_BYTES) * LINE_BYTES for shape in shapes]
    block = aligned((sum(steps),), np.uint8)
    starts = accumulate(steps, initial=0)
    return tuple(_placed(block[start:], shape, dtype) for start, shape in zip(starts, shapes, strict=False))


def side_by_side(matrices: list[NDArray[S]]) -> tuple[NDArray[S], ...]:
    """Copies of matrices of one dtype and any shape, `in_one_block`; the list is emptied, to free what is copied."""
    if not matrices:
        return ()
    placed = in_one_block([matrix.shape for matrix in matrices], matrices[0].dtype)
    for own in placed:
        own[:] = matrices.pop(0)
    return placed


def _fitting(nbytes: int) -> NDArray[np.uint8] | None:
    """The smallest block that waits and fits; None if there is none."""
    with _lock:
        waiting = _drained()
        fitting = (block for block in waiting if nbytes <= block.size <= _WASTE * nbytes)
        found = min(fitting, key=lambda block: block.size, default=None)
        _left.extend(block for block in waiting if block is not found)
        return found


def _leave(block: NDArray[np.uint8]) -> None:
    """Have a block wait for its next use, and let the oldest go that are too many.

    It may be called within any other function of this thread, so it waits for no lock: who holds it leaves too many until
    the next call.
    """
    _left.append(block)
    if _lock.acquire(blocking=False):
        try:
            waiting = _drained()
            sizes = list(accumulate(block.size for block in reversed(waiting)))
            _left.extend(waiting[sum(size > _KEPT_BYTES for size in sizes) :])
        finally:
            _lock.release()


def _drained() -> list[NDArray[np.uint8]]:
    """What waits, taken out one by one: while a deque is iterated over, a finalizer may append to it."""
    waiting = []
    with suppress(IndexError):
        while True:
            waiting.append(_left.popleft())
    return waiting


def _placed(block: NDArray[np.uint8], shape: tuple[int, ...], dtype: DType[S]) -> NDArray[S]:
    start = -block.ctypes.data % LINE_BYTES
    return block[start : start + _bytes(shape, dtype)].view(dtype).reshape(shape)


def _bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
