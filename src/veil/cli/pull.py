"""`veil pull`: its options and help; `veil.commands.pull` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import (
    AsJson,
    Digest,
    ExpertLeak,
    Leak,
    NoCryptography,
    NoTls,
    Tls,
    TlsCa,
    Token,
    address,
    terms,
)


def command(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist.")],
    name: Annotated[str | None, typer.Option(help="Which of the server's bundles.", show_default="the only one")] = None,
    token: Token = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    allow_no_tls: NoTls = False,
    digest: Digest = None,
    allow_no_cryptography: NoCryptography = False,
    expert_leak: Leak = ExpertLeak.none,
    as_json: AsJson = False,
) -> None:
    """Fetch the client half of a bundle, check its digests and show them."""
    from veil.commands.pull import run

    run(
        address(server, token, tls, tls_ca, allow_no_tls),
        out,
        terms=terms(expert_leak, allow_no_cryptography, digest),
        name=name,
        as_json=as_json,
    )
