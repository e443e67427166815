"""`veil bench load`: its options and help; `veil.commands.bench_load` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import Device, NoTls, Tls, TlsCa, Token, check_file
from veil.cli.reach import sign_of_life


def command(
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The server to load.", show_default="one of --model, started for it"),
    ] = None,
    clients: Annotated[
        str, typer.Option(metavar="N,N,...", help="How many clients at once, one after the other.")
    ] = "1,4,16,64",
    rows: Annotated[
        int, typer.Option(min=1, max=512, help="Rows of each message: tokens that a client has checked at once.")
    ] = 1,
    rtt: Annotated[str, typer.Option(metavar="MS,MS,...", help="Round-trip times that the generator adds.")] = "0",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each is measured, after everybody's first token.")] = 5.0,
    beside_prompt: Annotated[
        int, typer.Option(min=0, max=4096, help="One more client sends prompts of so many rows beside them; 0 for none.")
    ] = 0,
    kept: Annotated[
        int, typer.Option(min=1, max=64, help="Batches that each client keeps ready; they are made while it is measured.")
    ] = 2,
    bundle: Annotated[str, typer.Option(help="Which of the server's bundles.", show_default="its first")] = "",
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The server's --metrics-port, which says where a message's time goes."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Without --server: the shapes, with random weights, of `tiny`, `gpt2`, `smollm2`, `llama-1b`, `llama-8b` "
            "or `llama-70b`."
        ),
    ] = "gpt2",
    device: Annotated[Device, typer.Option(help="Without --server: where it computes.")] = Device.cpu,
    memory_gib: Annotated[float, typer.Option(min=0.01, help="Without --server: its memory for batches.")] = 8.0,
    processes: Annotated[int, typer.Option(min=0, help="Processes of the generator.", show_default="one for two cores")] = 0,
    token: Token = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    allow_no_tls: NoTls = False,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="RECORD", help="Measure nothing; show and draw this record.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the record; `-` prints it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|.svg", help="Draw the figure (needs matplotlib).")] = None,
) -> None:
    """Load a server with many clients that have no model and no keys, and say what each of them would see.

    A client opens a session, uploads batches and sends rows for one group of layers after another, as a generation does.
    What it uploads and sends is uniform, as ciphertexts are, so the server does all of its work. A token is one pass.

    The table has tokens and messages a second of all clients together; median, 95th and 99th percentile of a message and of
    a token; the time to the first token with everybody coming at once; the share of time in which clients waited for rows
    to be prepared; cores that server and generator kept busy; and, with `--metrics`, where a message's time goes.

    The server needs room: `--max-sessions`, and `--memory-gib` for `--kept` batches of each client.
    """
    if from_ is not None:
        check_file(from_)
    sign_of_life()
    from veil.bench.load import LoadRequest
    from veil.commands import bench_load
    from veil.commands.bench import parse_numbers

    address_tls: bool | str = str(tls_ca) if tls_ca is not None else tls
    bench_load.load(
        LoadRequest(
            server=server,
            model=model,
            device=device.value,
            token=token,
            tls=address_tls,
            allow_no_tls=allow_no_tls,
            bundle=bundle,
            metrics=metrics,
            clients=parse_numbers("--clients", clients),
            rows=rows,
            rtt_ms=bench_load.parse_times("--rtt", rtt),
            seconds=seconds,
            kept=kept,
            processes=processes,
            prompt_rows=beside_prompt,
            memory_gib=memory_gib,
        ),
        record=from_,
        json=as_json,
        plot=plot,
    )
