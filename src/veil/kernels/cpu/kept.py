"""Compiled kernels on disk: kept by Numba where a folder can be written, and mended where a file was cut off.

Numba reads its files as pickles and does not expect one to end early: after a loss of power while they were written there
would be no kernels ever again. Nor does it expect two processes to write kernels of one function at once: each would give
its own the same name, and a call could get the other's code. They take turns by a lock.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numba
import numpy as np
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target

from veil.priority import in_thread_of_its_own

ZERO = np.intp(0)
"""An argument of kernels that call each other: for a plain 0 Numba compiles the called one once more."""

_MARK = "veil-whole-"
folders: set[str] = set()
_own: set[str] = set()
"""Those of `folders` with this package's kernels: one."""
_compiling = threading.local()
_log = logging.getLogger("veil")


P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Compilable(Protocol):
    """What Numba compiles, and how it does."""

    compile: Callable[[object], object]


K = TypeVar("K", bound=Compilable)


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


class _SharedCache(FunctionCache):
    """Numba's cache of a function's kernels, which one process at a time writes to."""

    def save_overload(self, sig: object, data: object) -> None:
        """See numba: keep the kernel of a signature."""
        self._impl.locator.ensure_cache_path()
        with _locked(Path(self.cache_path) / "veil.lock"):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def can_share() -> bool:
    """Whether several processes may write kernels at once: there is a folder for them, in which a file can be locked."""
    return bool(_own) and sys.platform != "win32"


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block no other process compiles all kernels, on systems that have such locks."""
    if not can_share():
        yield
        return
    folder = Path(min(_own))
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "veil.all.lock"):
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside the block no other process is inside one with this file, on systems that have such locks."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def jitted(**options: Any) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """A decorator: Numba's ``njit`` with these options, kept on disk if there is a folder for it."""

    def compiled(function: Callable[P, R]) -> Kernel[P, R]:
        try:
            kernel = _compiled_elsewhere(njit(cache=True, **options)(function))
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            if not folders:
                _log.warning(
                    "compiled kernels cannot be kept, so every start takes a minute: set NUMBA_CACHE_DIR to a folder that "
                    "can be written"
                )
            folders.add("")
            return _compiled_elsewhere(njit(**options)(function))
        kernel._cache = _SharedCache(kernel.py_func)  # type: ignore[no-untyped-call]
        folder: str = kernel.stats.cache_path
        folders.add(folder)
        if function.__module__.startswith(f"{__package__}."):
            _own.add(folder)
        return kernel

    return compiled


def _compiled_elsewhere(kernel: K) -> K:
    """The kernel, compiled in a thread that Ctrl-C does not reach: cut off there, Numba would keep its lock for ever.

    Every other thread would wait at its next kernel. A kernel that another one calls is compiled in that one's thread.
    """
    compile_here = kernel.compile

    def compile_there(signature: object) -> object:
        _compiling.here = True
        return compile_here(signature)

    def compile_elsewhere(signature: object) -> object:
        if getattr(_compiling, "here", False):
            return compile_here(signature)
        return in_thread_of_its_own(lambda: compile_there(signature))

    kernel.compile = compile_elsewhere
    return kernel


def mend() -> list[str]:
    """Remove files of kernels that were cut off, which Numba then makes again; their names."""
    removed = []
    for folder in folders - {""}:
        for file in Path(folder).glob("*.nb[ic]"):
            if not _is_whole(file):
                file.unlink(missing_ok=True)
                removed.append(file.name)
    if removed:
        _forget_marks()
        _log.warning("%d files of compiled kernels were damaged; they are made again", len(removed))
    return removed


def all_there(part: str, sources: Sequence[Path]) -> bool:
    """Whether `note_all_there` was called for this part and these sources, by this Numba, for this processor."""
    mark = _mark(part, sources)
    return mark is not None and mark.exists()


def note_all_there(part: str, sources: Sequence[Path]) -> None:
    """Note that every kernel of a part is compiled and on disk."""
    mark = _mark(part, sources)
    if mark is not None:
        with suppress(OSError):
            _forget_marks(part)
            mark.touch()


def _forget_marks(part: str = "") -> None:
    for folder in _own:
        for mark in Path(folder).glob(f"{_MARK}{part}*"):
            mark.unlink(missing_ok=True)


def _mark(part: str, sources: Sequence[Path]) -> Path | None:
    """The file that says that every kernel of a part is on disk; None where none is kept."""
    if not _own:
        return None
    own = sorted((file.name, file.stat().st_mtime_ns) for file in {*sources, *Path(__file__).parent.glob("*.py")})
    processor = cpu_target.target_context.codegen().magic_tuple()
    threads = numba.config.NUMBA_NUM_THREADS > 1  # type: ignore[attr-defined]
    state = repr((own, processor, numba.__version__, sys.version_info[:2], threads))
    return Path(min(_own)) / f"{_MARK}{part}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"


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
