"""What begins with an underscore belongs to its module: tests of other rooms neither read nor set it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "veil"

NAME = re.compile(
    r"(?<!\w)(?:self|cls)\.(_[a-z]\w*)|^ *(?:async )?(?:def|class) (_[A-Za-z]\w*)|^(_[A-Za-z]\w*)(?:: .*)? = ", re.M
)
USE = re.compile(r"(?<!\bself)(?<!\bcls)\.(_[A-Za-z]\w*)|attr\([^\"]*\"(_[A-Za-z]\w*)\"|import .*?\b(_[A-Za-z]\w*)")


def rooms_of_names() -> dict[str, set[str]]:
    """Rooms that have a private attribute, function or constant of this name."""
    rooms: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for found in NAME.findall(path.read_text(encoding="utf-8")):
            rooms.setdefault("".join(found), set()).add(path.relative_to(SOURCE).parts[0].removesuffix(".py"))
    return rooms


def uses(text: str, room: str, rooms: dict[str, set[str]]) -> list[str]:
    """Private names of other rooms than this that a test's text uses, one for each line."""
    found = []
    for line in text.splitlines():
        names = {"".join(match) for match in USE.findall(line)}
        found += sorted(name for name in names if name in rooms and room not in rooms[name])[:1]
    return found


def test_tests_use_no_private_name_of_another_room() -> None:
    rooms, found = rooms_of_names(), []
    for path in sorted({*(ROOT / "tests").rglob("*.py")} - {Path(__file__)}):
        parts = path.relative_to(ROOT / "tests").parts
        room = parts[0] if len(parts) > 1 else parts[0].removesuffix(".py").removeprefix("test_")
        found += [f"{path.relative_to(ROOT)}: {name}" for name in uses(path.read_text(encoding="utf-8"), room, rooms)]
    assert found == [], "give it a name without an underscore, or test it in its own room:\n" + "\n".join(found)


def test_a_use_is_found() -> None:
    rooms = {"_pool": {"client"}}
    text = 'session._pool.take()\nself._pool = 1\nsetattr(x, "_pool", 2)\nfrom veil.client import _pool\n'
    assert uses(text, "remote", rooms) == ["_pool"] * 3
    assert uses(text, "client", rooms) == []
