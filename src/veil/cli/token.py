"""`veil token`: its help; `veil.network.tokens` does the work."""

from __future__ import annotations

import typer


def command() -> None:
    """Make a bearer token, on standard output; its lines for the server's `--tokens` file go to standard error."""
    from veil.network.tokens import digest_of, fresh_token

    made = fresh_token()
    typer.echo(made)
    typer.echo(f"# for the server's --tokens file\n{digest_of(made)}", err=True)
