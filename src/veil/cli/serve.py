"""`veil serve`: its options and help; `veil.commands.serve` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import Device
from veil.cli.reach import sign_of_life


def command(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE/server...", help="Server halves, as PATH or NAME=PATH.")],
    offer: Annotated[
        list[str] | None,
        typer.Option(metavar="BUNDLE/client", help="A client half for `veil pull`, as PATH or NAME=PATH; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8471,
    device: Annotated[Device, typer.Option(help="Where it computes; `auto` takes a GPU if veil can use one.")] = Device.auto,
    gpus: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Use so many GPUs: copies of a bundle that fits on one, one a GPU; a larger bundle is cut, each GPU "
            "with its part of every layer.",
        ),
    ] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="File of accepted tokens' SHA-256 digests, one a line; `veil token` makes them.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that other machines reach, without TLS and tokens.")
    ] = False,
    rows_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="The row lane's port: rows over plain TCP or TLS, faster than gRPC; 0: over gRPC.",
            show_default="port + 1",
        ),
    ] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="The most sessions at once.")] = 64,
    memory_gib: Annotated[float, typer.Option(min=0.01, help="Memory for the sessions' batches of rows.")] = 4.0,
    rows_per_day: Annotated[
        int,
        typer.Option(
            min=0,
            help="The most rows that one token may have of any layer in a day (UTC), 0 for none. A token of text is a row; "
            "who has as many rows as a layer is wide can compute its weights.",
        ),
    ] = 0,
    rows_file: Annotated[
        Path | None,
        typer.Option(help="Where rows are counted.", show_default="a file for each port in the user's data folder"),
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Answer Prometheus on this port.")] = None,
) -> None:
    """Compute the remote layers of bundles for clients that keep their keys.

    It reads the server halves and sees ciphertexts only. SIGTERM lets running calls finish, for 30 seconds at most. One
    JSON object a line is logged to standard error.
    """
    from veil.commands.halves import named

    for halves in (bundles, offer or []):
        named(halves)  # a path to nothing is told of before anything is loaded
    sign_of_life()
    from veil.commands.serve import ServeRequest, run

    run(
        ServeRequest(
            bundles=bundles,
            offers=offer or [],
            host=host,
            port=port,
            rows_port=rows_port,
            device=device.value,
            gpus=gpus,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tokens=tokens,
            insecure=insecure,
            max_sessions=max_sessions,
            memory_gib=memory_gib,
            metrics_port=metrics_port,
            rows_per_day=rows_per_day,
            rows_file=rows_file,
        )
    )
