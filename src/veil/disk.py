"""Writing to disk: whatever fails there is an `OSError` that names the place, so that one line can explain it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A disk that is full, a quota that is used up, a file larger than may be."""

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
