"""The driver's four calls, with functions of our own in their place: what they are given, in which order, and errors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from veil.kernels.cuda import launching
from veil.kernels.cuda.launching import ARGUMENTS, MOST_ARGUMENTS

U64, U32 = ctypes.c_uint64, ctypes.c_uint32


@pytest.fixture
def undone() -> Iterator[None]:
    """What is known of a driver is forgotten before and after."""
    launching.load_driver.cache_clear()
    yield
    launching.load_driver.cache_clear()


@pytest.fixture(scope="module")
def driver() -> Any:
    """A driver whose copies are copies of this process's memory; its launch copies the first four bytes of its first
    argument to its second, and fails for 13 programs. ``seen`` is what was called."""
    seen: list[tuple[object, ...]] = []

    def noting(name: str, *kinds: type, then: Callable[..., int]) -> object:
        def call(*given: int) -> int:
            seen.append((name, *given))
            return then(*given)

        return ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(call)

    def copy(to: int, source: int, nbytes: int, stream: int) -> int:
        ctypes.memmove(to, source, nbytes)
        return 0

    def start(*given: int) -> int:
        places = (U64 * MOST_ARGUMENTS).from_address(given[9])
        data, out = (U64.from_address(places[n]).value for n in (0, 1))
        ctypes.memmove(out, data, 4)
        return 700 if given[1] == 13 else 0

    return SimpleNamespace(
        seen=seen,
        cuMemcpyHtoDAsync_v2=noting("put", U64, U64, U64, U64, then=copy),
        cuMemcpyDtoHAsync_v2=noting("get", U64, U64, U64, U64, then=copy),
        cuLaunchKernel=noting("launch", U64, *[U32] * 7, U64, U64, U64, then=start),
        cuStreamSynchronize=noting("wait", U64, then=lambda stream: 0),
    )


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("why", ["no library", "a function is missing"])
def test_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def library(name: str) -> object:
        if why == "no library":
            raise OSError(name)
        return SimpleNamespace()

    monkeypatch.setattr(ctypes, "CDLL", library)
    assert not launching.load_driver()


@pytest.mark.skipif(sys.platform == "win32", reason="a GPU's server runs on Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver: the kernels' own tests use it")
@pytest.mark.usefixtures("undone")
def test_a_launch_and_its_wait_are_four_calls_in_their_order(monkeypatch: pytest.MonkeyPatch, driver: Any) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert launching.load_driver()
    calls: list[tuple[object, ...]] = driver.seen
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
    assert launching.launch(words) == 0 and launching.wait(words) == 0
    assert came.tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert [call[0] for call in calls] == [
        "put",
        "launch",
        "get",
        "wait",
    ]
    assert calls[0][3:] == (6, 5) and calls[2][3:] == (4, 5) and calls[3][1:] == (5,)
    assert calls[1][1:10] == (77, 12, 1, 1, 32, 1, 1, 640, 5)
    calls.clear()
    words[launching.PROGRAMS] = 13
    assert launching.launch(words) == 700
    assert [call[0] for call in calls] == ["put", "launch"], "nothing is done after an error"
