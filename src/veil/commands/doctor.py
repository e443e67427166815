"""`veil doctor`: what of this machine veil depends on, what was found, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veil.commands.checkup import Check, Finding, checkups
from veil.commands.terminal import Reporter

_COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


def run(*, server: str | None, as_json: bool) -> None:
    """Print every finding as a table or as JSON; exit code 1 if there is a problem."""
    found: list[Finding] = []
    with Reporter() as reporter:
        steps = checkups(server)
        for done, (name, check) in enumerate(steps):
            reporter.report("checking this machine", done, len(steps))
            found.append(_tried(name, check))
        reporter.report("checking this machine", len(steps), len(steps))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        _show(found)
    if any(finding.state == "problem" for finding in found):
        raise typer.Exit(1)


def _tried(name: str, check: Check) -> Finding:
    """A check that fails in a way nobody thought of is a problem of its own."""
    try:
        state, text, remedy = check()
    except Exception as error:
        state, text, remedy = "problem", f"{type(error).__name__}: {error}", "report it, with this line"
    return Finding(name=name, state=state, found=" ".join(str(text).split()), remedy=remedy)


def _show(found: list[Finding]) -> None:
    table = Table(title="veil doctor", title_justify="left")
    for column in ("", "state", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in found:
        colour = _COLOURS[finding.state]
        table.add_row(finding.name, Text(finding.state, colour), Text(finding.found), Text(finding.remedy))
    Console().print(table)
