"""The cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.cache import cache_folder


def test_there_is_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VEIL_CACHE_DIR", raising=False)
    assert cache_folder().name == "veil"


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VEIL_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
