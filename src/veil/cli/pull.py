"""`veil pull`: its options and help; `veil.commands.pull` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.groups import grouped
from veil.cli.options import AsJson, Consent, ServerAccess


@grouped
def command(
    *,
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist.")],
    name: Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the only one")] = None,
    server_access: ServerAccess,
    consent: Consent,
    as_json: AsJson = False,
) -> None:
    """Fetch the client half of a bundle, check its digests and show them."""
    from veil.commands.pull import run

    run(
        server_access.address(server),
        out,
        terms=consent.terms(),
        name=name,
        as_json=as_json,
    )
