"""Copy, launch, copy back, and wait: the CUDA driver's functions, called without the interpreter.

From Python each of the four gives the interpreter away and has to get it back from busy threads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import llvmlite.binding as llvm
import numpy as np
from numba import types
from numpy.typing import NDArray

from veil.kernels.cpu.addresses import external
from veil.kernels.cpu.kept import jitted

I64 = NDArray[np.int64]

FUNCTION, STREAM, PROGRAMS, THREADS, SHARED, SENT, DATA, SENT_BYTES, CAME, OUT, CAME_BYTES, ARGUMENTS = range(12)
"""Words of a launch: what, where, how many; the host's memory that goes to the device's, and that comes; then arguments."""

MOST_ARGUMENTS = 12
"""Of a launch; those that a kernel does not have are not read."""

_NAMES = ("cuMemcpyHtoDAsync_v2", "cuLaunchKernel", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize")

_put = external("cuMemcpyHtoDAsync_v2", types.intc(types.uint64, types.uint64, types.uint64, types.uint64))
_get = external("cuMemcpyDtoHAsync_v2", types.intc(types.uint64, types.uint64, types.uint64, types.uint64))
_wait = external("cuStreamSynchronize", types.intc(types.uint64))
_start = external(
    "cuLaunchKernel",
    types.intc(
        types.uint64, types.uintc, types.uintc, types.uintc, types.uintc, types.uintc, types.uintc, types.uintc,
        types.uint64, types.uint64, types.uint64,
    ),
)  # fmt: skip


@lru_cache(maxsize=1)
def load_driver() -> bool:
    """Have the driver's functions known before `launch` is compiled or called; whether they all are.

    A name that is not known would end the process.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        found = {name: ctypes.cast(getattr(driver, name), ctypes.c_void_p).value for name in _NAMES}
    except (OSError, AttributeError):
        return False
    for name, address in found.items():
        llvm.add_symbol(name, address)
    return True


@jitted(nogil=True)
def launch(own):  # type: ignore[no-untyped-def]
    """Begin what the words [ARGUMENTS + MOST_ARGUMENTS] int64 say: copy, launch, copy back; the driver's error or 0."""
    stream, one = types.uint64(own[STREAM]), types.uintc(1)
    places = np.empty(MOST_ARGUMENTS, np.uint64)
    for n in range(MOST_ARGUMENTS):
        places[n] = np.uint64(own.ctypes.data) + np.uint64(8 * (ARGUMENTS + n))
    failed = _put(types.uint64(own[DATA]), types.uint64(own[SENT]), types.uint64(own[SENT_BYTES]), stream)
    if failed == 0:
        failed = _start(
            types.uint64(own[FUNCTION]), types.uintc(own[PROGRAMS]), one, one, types.uintc(own[THREADS]), one, one,
            types.uintc(own[SHARED]), stream, types.uint64(places.ctypes.data), types.uint64(0),
        )  # fmt: skip
    if failed == 0:
        failed = _get(types.uint64(own[CAME]), types.uint64(own[OUT]), types.uint64(own[CAME_BYTES]), stream)
    return failed


@jitted(nogil=True)
def wait(own):  # type: ignore[no-untyped-def]
    """Wait until what `launch` began is done; the driver's error, or 0."""
    return _wait(types.uint64(own[STREAM]))
