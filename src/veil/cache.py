"""Where veil keeps what it would otherwise make or fetch again, and what it has to remember."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The environment variable ``VEIL_CACHE_DIR``, or the user's cache folder; it need not exist."""
    chosen = os.environ.get("VEIL_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("veil"))


def states_folder() -> Path:
    """Where `veil gateway --cache-gib` keeps conversations' states."""
    return cache_folder() / "states"


def data_folder() -> Path:
    """The environment variable ``VEIL_DATA_DIR``, or the user's data folder, for what is not to be lost."""
    chosen = os.environ.get("VEIL_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("veil"))
