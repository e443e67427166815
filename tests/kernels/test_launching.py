"""The driver's four calls, with functions of our own in their place: what they are given, in which order, and errors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest

from veil.kernels.cuda import launching
from veil.kernels.cuda.launching import ARGUMENTS, MOST_ARGUMENTS

U64, U32 = ctypes.c_uint64, ctypes.c_uint32
_kept: list[object] = []


@pytest.fixture(scope="module")
def calls() -> list[tuple[object, ...]]:
    """What was called; the launch adds its first arguments' sum, and fails for a grid of 13 programs."""
    if launching.load_driver():
        pytest.skip("there is a driver: the kernels' own tests use it")
    seen: list[tuple[object, ...]] = []

    def note(name: str, *kinds: type, then: Callable[..., int]) -> None:
        def call(*given: int) -> int:
            seen.append((name, *given))
            return then(*given)

        made = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(call)
        _kept.append(made)
        llvm.add_symbol(name, ctypes.cast(made, ctypes.c_void_p).value)

    def copy(to: int, source: int, nbytes: int, stream: int) -> int:
        ctypes.memmove(to, source, nbytes)
        return 0

    def start(*given: int) -> int:
        places = (U64 * MOST_ARGUMENTS).from_address(given[9])
        data, out = (U64.from_address(places[n]).value for n in (0, 1))
        ctypes.memmove(out, data, 4)
        return 700 if given[1] == 13 else 0

    note("cuMemcpyHtoDAsync_v2", U64, U64, U64, U64, then=copy)
    note("cuMemcpyDtoHAsync_v2", U64, U64, U64, U64, then=copy)
    note("cuLaunchKernel", U64, *[U32] * 7, U64, U64, U64, then=start)
    note("cuStreamSynchronize", U64, then=lambda stream: 0)
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="a GPU's server runs on Linux")
def test_a_round_trip_is_four_calls_in_their_order(calls: list[tuple[object, ...]]) -> None:
    sent, data, out, came = (np.zeros(8, np.uint8) for _ in range(4))
    sent[:4] = 1, 2, 3, 4
    words = np.zeros(ARGUMENTS + MOST_ARGUMENTS, np.int64)
    words[:ARGUMENTS] = (
        77,
        5,
        12,
        32,
        640,
        *(own.ctypes.data for own in (sent, data)),
        6,
        *(own.ctypes.data for own in (came, out)),
        4,
    )
    words[ARGUMENTS : ARGUMENTS + 2] = data.ctypes.data, out.ctypes.data
    assert launching.round_trip(words) == 0
    assert came.tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert [call[0] for call in calls] == [
        "cuMemcpyHtoDAsync_v2",
        "cuLaunchKernel",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
    ]
    assert calls[0][3:] == (6, 5) and calls[2][3:] == (4, 5) and calls[3][1:] == (5,)
    assert calls[1][1:10] == (77, 12, 1, 1, 32, 1, 1, 640, 5)
    calls.clear()
    words[launching.PROGRAMS] = 13
    assert launching.round_trip(words) == 700
    assert [call[0] for call in calls] == ["cuMemcpyHtoDAsync_v2", "cuLaunchKernel"], "nothing is done after an error"
