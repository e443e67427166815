"""Writing to disk: whole or not at all; what fails is an `OSError` that names the place, so that one line can explain it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A disk that is full, a quota that is used up, a file larger than may be."""

PART = ".part-"
"""How the names of folders begin that are being written."""

_STALE_S = 86400.0
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Inside the block files are written to ``path``: an `OSError` that does not name a file gets that name.

    safetensors has an error class of its own for the same; it becomes an `OSError` as well.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    except Exception as error:
        found = _OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def write_whole(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file beside its place and move it there: after a crash it is the old one or the new one, never a part.

    ``mode`` is that of the new file, the process's usual one for None. `OSError` leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.unlink(missing_ok=True)  # of a process of this number that was killed
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with writing(path), os.fdopen(os.open(written, flags, 0o666 if mode is None else mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def whole_folder(place: Path, is_there: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A new folder beside ``place``, which the block fills and which is then moved there, in place of what was there.

    After a crash ``place`` is what it was, or whole. A block that raises leaves nothing. What crashes left beside it a day
    ago or earlier is removed. Where another process was faster (``is_there`` at the end), its folder stays.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(place.parent)
    part = _beside(place)
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if is_there():
            return
        if place.exists():
            old = _beside(place)
            place.rename(old)
            part.rename(place)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def _beside(place: Path) -> Path:
    return place.with_name(f"{PART}{secrets.token_hex(8)}")


def _to_disk(file: Path) -> None:
    """What a file holds is on the disk before its folder gets its name; a file system that cannot say so is believed."""
    try:
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno in NO_ROOM | {errno.EIO}:
            raise


def _remove_stale(folder: Path) -> None:
    for part in folder.glob(f"{PART}*"):
        try:
            last = max(entry.stat().st_mtime for entry in [part, *part.rglob("*")])
        except OSError:  # another process is at it
            continue
        if last < time.time() - _STALE_S:
            shutil.rmtree(part, ignore_errors=True)
