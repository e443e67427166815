"""The table of features in docs/gateway.md: every cell of veil's column names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_feature_is_held_by_tests() -> None:
    page = (TESTS.parent / "docs" / "gateway.md").read_text(encoding="utf-8")
    table = page.partition("| | veil gateway | held by |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert len(rows) > 12
    for feature, _, held, *_ in rows:
        named = re.findall(r"`([^`]+)`", held)
        assert named, f"{feature} is held by nothing"
        for name in named:
            place = TESTS / name
            assert place.is_file() or any(place.glob("test_*.py")), f"{feature}: there is no {name}"
