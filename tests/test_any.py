"""``Any`` switches the checker off: where the source says it, and how often at most."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "veil"
MOST = 40
"""Each is where another library decides the type: numba, a model's own output, arrays of several kinds of processors."""


def test_the_source_says_any_no_more_often() -> None:
    found = 0
    for path in SOURCE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found += sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    assert found <= MOST, f"Any {found} times, at most {MOST}: say what it is, a Protocol, a TypeVar or object"
