"""What is shipped: the source distribution has all that its tests read, and every extra that a line names is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from veil.commands.terminal import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
ALWAYS = {"pyproject.toml", "README.md", "LICENSE", ".gitignore"}
"""Put there by the build itself."""


def test_the_source_distribution_is_whole() -> None:
    """Everything in the repository's root but what is for its host alone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    there = {name.split("/")[0] for name in listed if name}
    include = PROJECT.split("[tool.hatch.build.targets.sdist]")[1].split("[", 1)[1].split("]", 1)[0]
    shipped = {name.strip("/") for name in re.findall(r'"([^"]+)"', include)}
    assert there - shipped - ALWAYS <= {".ci", ".github", ".pre-commit-config.yaml"}
    assert shipped <= there


def test_every_extra_that_is_named_exists() -> None:
    declared = set(re.findall(r"^([a-z]+) = \[$", PROJECT.split("[project.optional-dependencies]")[1], re.M))
    assert set(EXTRAS) <= declared
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    named = {
        extra
        for page in pages
        for group in re.findall(r"veil-llm\[([a-z,]+)\]", page.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named and named <= declared
