"""A group of options is spelled once: the command sees one value, the user one option for each field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from veil.cli.groups import grouped


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something is."""

    host: Annotated[str, typer.Option(help="The host.")] = "here"
    port: Annotated[int, typer.Option(help="The port.")] = 1


def test_a_group_is_an_option_for_each_field() -> None:
    seen: list[tuple[str, Place, bool]] = []
    app = typer.Typer()

    @app.command()
    @grouped
    def command(*, name: Annotated[str, typer.Argument()], place: Place, loud: bool = False) -> None:
        """Do it."""
        seen.append((name, place, loud))

    def run(*arguments: str) -> int:
        return CliRunner().invoke(app, [*arguments]).exit_code

    assert run("a") == run("b", "--port", "7", "--loud") == 0
    assert seen == [("a", Place(), False), ("b", Place(port=7), True)]
    assert run("c", "--port", "x") == 2
    text = CliRunner().invoke(app, ["--help"]).output
    assert "--host" in text and "--port" in text and "Do it." in text and "--place" not in text
