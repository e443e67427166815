"""Nothing is asked of the hub while a half is read: its settings may name somebody's repository, who would see it read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

_LOCK = threading.RLock()


@contextmanager
def without_hub() -> Iterator[None]:
    """Have every call of the hub inside the block fail, in all threads; what is in its cache on disk can be read."""
    with _LOCK:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
