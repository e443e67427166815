"""Every command line that the README, SECURITY.md, docs and deploy show has a command and options that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from veil.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
]


def commands_in(text: str) -> set[str]:
    """Command lines in code blocks, units and container files, and in the running text."""
    blocks = "".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.S)) or ("" if "`veil " in text else text)
    lines = [re.sub(r"^\$ ", "", line.strip()) for line in blocks.replace("\\\n", " ").splitlines()]
    shown = {line for line in lines if line.startswith("veil ")}
    return shown | {" ".join(found.split()) for found in re.findall(r"`(veil [a-z]+ [^`]*)`", text)}


def options_of(command: str, known: dict[str, Any]) -> tuple[str, list[str]]:
    """The command's name and the long options of a line that it does not have."""
    words = re.split(r" #|\||&|>", command)[0].split()
    name = words[1] if len(words) > 1 else ""
    commands = getattr(known.get(name), "commands", {})
    if len(words) > 2 and words[2] in commands:  # a command of a command, such as `veil bench load`
        inner, unknown = options_of(" ".join(["veil", *words[2:]]), commands)
        return f"{name} {inner}", unknown
    options = [re.match(r"--[a-z-]+", word.strip("[]()`,.;…")) for word in words[2:]]
    has = {option for parameter in known[name].params for option in parameter.opts} | {"--help"} if name in known else set()
    return name, [found[0] for found in options if found is not None and found[0] not in has]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_that_a_page_shows_can_be_typed(page: Path) -> None:
    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in commands_in(page.read_text()):
        name, unknown = options_of(command, known)
        assert name.split()[0] in known or name.startswith("-"), f"{page.name}: no command {name!r} in {command!r}"
        assert not unknown, f"{page.name}: {command!r} has {unknown[0]}, which veil {name} does not know"


def test_the_readme_shows_every_command() -> None:
    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = {command.split()[1] for page in PAGES for command in commands_in(page.read_text())}
    assert set(known) <= shown


def test_a_stale_command_is_found() -> None:
    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert options_of("veil serve x --listen 1 --offer y # --no", known) == ("serve", ["--listen"])
    assert options_of("veil bench load --clients 1 --port 2", known) == ("bench load", ["--port"])
    assert commands_in("```\n$ veil serve a \\\n  --offer b\n```\nand `veil chat --server\nX`") == {
        "veil serve a    --offer b",
        "veil chat --server X",
    }
