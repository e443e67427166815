"""The programs of `bench` start others of them as modules: a path of its own knows nothing of the rest."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import bench.__main__
import pytest

BENCH = Path(bench.__main__.__file__).parent


@pytest.mark.parametrize("name", bench.__main__.PROGRAMS)
def test_a_program_can_be_started_as_a_module(name: str) -> None:
    assert callable(importlib.import_module(f"bench.{name}").main)


def test_no_program_starts_a_file_by_its_path() -> None:
    for path in BENCH.glob("*.py"):
        assert not re.search(r"sys\.executable,\s*(str\()?__file__", path.read_text()), path.name
