"""Compiled kernels on disk: kept by Numba where a folder can be written, and mended where a file was cut off.

Numba reads its files as pickles and does not expect one to end early: after a loss of power while they were written there
would be no kernels ever again.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from numba import njit

_folders: set[str] = set()
_log = logging.getLogger("veil")


P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class KernelFiles(Protocol):
    """What Numba tells of a kernel's files."""

    cache_path: str
    cache_misses: Mapping[object, int]


class Kernel(Protocol[P, R]):
    """A function that Numba compiles when it is first called."""

    stats: KernelFiles

    @property
    def py_func(self) -> Callable[P, R]:
        """The function as it was written."""

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """The compiled function's result."""


def jitted(**options: Any) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """A decorator: Numba's ``njit`` with these options, kept on disk if there is a folder for it."""

    def compiled(function: Callable[P, R]) -> Kernel[P, R]:
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            if not _folders:
                _log.warning(
                    "compiled kernels cannot be kept, so every start takes a minute: set NUMBA_CACHE_DIR to a folder that "
                    "can be written"
                )
            _folders.add("")
            return njit(**options)(function)
        _folders.add(kernel.stats.cache_path)
        return kernel

    return compiled


def mend() -> list[str]:
    """Remove files of kernels that were cut off, which Numba then makes again; their names."""
    removed = []
    for folder in _folders - {""}:
        for file in Path(folder).glob("*.nb[ic]"):
            if not _is_whole(file):
                file.unlink(missing_ok=True)
                removed.append(file.name)
    if removed:
        _log.warning("%d files of compiled kernels were damaged; they are made again", len(removed))
    return removed


def _is_whole(file: Path) -> bool:
    """Whether an index (a version, then pickled bytes that hold another pickle) or a kernel (one pickle) can be read."""
    try:
        with file.open("rb") as stream:
            pickle.load(stream)  # noqa: S301
            rest = stream.read()
            if file.suffix == ".nbi":
                pickle.loads(rest)  # noqa: S301
        return True
    except FileNotFoundError:
        return True
    except Exception:  # what a pickle that ends early raises is of every kind
        return False
