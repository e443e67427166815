"""Where veil keeps what it would otherwise make or fetch again: converted models, fetched client halves, a peer."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The environment variable ``VEIL_CACHE_DIR``, or the user's cache folder; it need not exist."""
    chosen = os.environ.get("VEIL_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("veil"))
