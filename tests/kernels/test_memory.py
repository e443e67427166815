"""Arrays begin at cache lines; a room's memory is used again when nothing looks at it any more, and not before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from veil.kernels import memory
from veil.kernels.memory import LINE_BYTES, aligned, room, side_by_side


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """No other test's memory waits for its next use."""
    memory._left.clear()


@pytest.mark.parametrize("make", [aligned, room])
@pytest.mark.parametrize("dtype", [np.uint32, np.int8, np.uint64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (4096, 16)])
def test_arrays_begin_at_a_line(make: Any, shape: tuple[int, ...], dtype: Any) -> None:
    made = make(shape, dtype)
    assert (made.shape, made.dtype, made.ctypes.data % LINE_BYTES) == (shape, dtype, 0)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert make((0, 4), dtype).shape == (0, 4)


def test_a_room_is_used_again_only_when_no_view_is_left() -> None:
    first = room((1000, 1000), np.uint32)
    place = first.ctypes.data
    view = first[10:, ::2].reshape(-1)[5:]
    kept = first[500, :10]
    kept[:] = 7
    del first, view
    other = room((1000, 1000), np.uint32)
    other[:] = 9
    assert other.ctypes.data != place
    assert (kept == 7).all()
    del kept
    assert room((900, 1000), np.uint32).ctypes.data == place


def test_threads_never_share_a_room() -> None:
    def fill(number: int) -> bool:
        good = True
        for turn in range(50):
            mine = room((1 + 997 * (turn % 3), 64), np.int64)
            mine[:] = number * 100 + turn
            good &= bool((mine == number * 100 + turn).all())
        return good

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fill, range(8)))


def test_matrices_stand_side_by_side() -> None:
    draw = np.random.default_rng(1)
    given = [draw.integers(-128, 128, shape, dtype=np.int8) for shape in ((3, 5), (0, 4), (64, 64), (1, 65))]
    placed = side_by_side(list(given))
    for matrix, own in zip(given, placed, strict=True):
        np.testing.assert_array_equal(own, matrix)
        assert not own.size or own.ctypes.data % LINE_BYTES == 0
    first, last = (placed[place].ctypes.data for place in (0, 3))
    assert last - first == 64 + 4096
    assert side_by_side([]) == ()


def test_a_room_may_go_away_while_another_is_looked_for() -> None:
    """The garbage collector runs whenever it likes, also inside of `room`."""
    first = room((77, 1000), np.uint32)
    place = first.ctypes.data
    with memory._lock:
        del first
    assert room((77, 1000), np.uint32).ctypes.data == place


def test_only_so_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go; and a small array does not hold a large block."""
    monkeypatch.setattr(memory, "_KEPT_BYTES", 350_000)
    rooms = [room((100_000,), np.uint8) for _ in range(5)]
    places = [one.ctypes.data for one in rooms]
    while rooms:
        rooms.pop(0)
    assert sum(block.size for block in memory._left) == 3 * (100_000 + LINE_BYTES)
    assert room((1000,), np.uint8).ctypes.data not in places
    assert room((100_000,), np.uint8).ctypes.data == places[2]
