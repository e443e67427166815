"""docs/tour.md and README's tree name files and things that exist, and the way from a layer to bytes is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "veil"
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
STEP = re.compile(r"^\d+\. \*\*`([\w/]+\.py)`\*\*(?:, `(\w+)(?:\.(\w+))?`)?", re.M)


def walk(title: str) -> list[tuple[str, str, str]]:
    """(file, class or function, method) of each step of a section."""
    return STEP.findall(re.split(r"^## ", TOUR.split(f"## {title}")[1], flags=re.M)[0])


@pytest.mark.parametrize("title", ["One activation, online", "One batch of rows, offline"])
def test_each_file_of_a_walk_is_there_and_visited_once(title: str) -> None:
    steps = walk(title)
    files = [file for file, _, _ in steps]
    assert len(files) > 8 and len(set(files)) == len(files)
    for file, name, method in steps:
        text = (SOURCE / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(class|def) {name}\b", text, re.M), f"{file} has no {name}"
        assert not method or re.search(rf"^    def {method}\b", text, re.M), f"{file} has no {name}.{method}"


def test_an_activation_becomes_bytes_within_six_files() -> None:
    steps = STEP.findall(TOUR.split("### From a layer's call to bytes")[1].split("###")[0])
    assert steps[0] == ("runtime/layers.py", "RemoteLayer", "forward")
    assert steps[-1][0] == "network/frames.py"
    assert len(steps) <= 6


def test_the_readme_s_tree_has_every_room_in_thirty_lines() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree is the table of contents")[1].split("```")[1]
    lines = tree.strip().splitlines()
    assert len(lines) <= 30
    named = set(re.findall(r"^  (\w+)/", tree, re.M))
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert named == rooms
