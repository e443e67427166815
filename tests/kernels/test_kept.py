"""Kernels are compiled, and read from disk, in threads that Ctrl-C does not reach: Numba's lock stays nobody's."""

from __future__ import annotations

import threading
from typing import Any

from veil.kernels.cpu.kept import jitted


def plus_one(value: int) -> int:
    return value + 1


inner = jitted()(plus_one)


def plus_two(value: int) -> int:
    return inner(inner(value))


def test_a_kernel_and_what_it_calls(monkeypatch: Any) -> None:
    outer, threads = jitted()(plus_two), []
    for kernel in (inner, outer):
        cache: Any = kernel._cache  # type: ignore[attr-defined]
        load = cache.load_overload

        def look(*arguments: object, load: Any = load) -> Any:
            threads.append(threading.current_thread())
            return load(*arguments)

        monkeypatch.setattr(cache, "load_overload", look)
    assert outer(3) == 5 and outer(3) == 5
    assert threads and len(set(threads)) == 1
    assert threading.current_thread() not in threads
