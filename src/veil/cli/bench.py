"""`veil bench`: its options and help; `veil.commands.bench` does the work."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import Device, FuseNorms
from veil.cli.reach import sign_of_life


class BenchMode(str, Enum):
    """Where `veil bench` runs the server."""

    execute = "execute"
    remote = "remote"


class BenchPeer(str, Enum):
    """Systems that `veil bench` compares with."""

    concrete_ml = "concrete-ml"


class BenchFigure(str, Enum):
    """Figures that `veil bench` draws."""

    phases = "phases"
    bytes = "bytes"
    rows = "rows"
    links = "links"
    widths = "widths"
    signal = "signal"


def command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="`smollm2` (built in), `gpt2` or `llama-1b` (their shapes with random weights: speed does not depend on "
            "values), or a FOLDER or FILE.gguf."
        ),
    ] = "smollm2",
    device: Annotated[
        Device,
        typer.Option(
            help="Where it computes, both halves and the layers between them, or the server's half alone with --mode "
            "remote; `auto` takes a GPU if veil can use one."
        ),
    ] = Device.cpu,
    mode: Annotated[
        BenchMode,
        typer.Option(help="`execute`: client and server in one process; `remote`: the server in another, over loopback."),
    ] = BenchMode.execute,
    prompt_rows: Annotated[
        str,
        typer.Option(metavar="R,R,...", help="Rows of the prompts to measure; the first is that of the generations too."),
    ] = "64,512",
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens measured in each generation; 64 take the rows of a batch.")
    ] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Generations of each kind.")] = 3,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Measure the float32 model with the same prompt in the same run.")
    ] = False,
    busy: Annotated[
        int,
        typer.Option(min=0, help="Processes to run beside it, plaintext too, each with a thread for every core."),
    ] = 0,
    peer: Annotated[
        BenchPeer | None, typer.Option(help="Measure this system on the same layer shapes; minutes to a quarter of an hour.")
    ] = None,
    install_peer: Annotated[
        bool,
        typer.Option("--install-peer", help="Let this command install the peer into a virtual environment of its own."),
    ] = False,
    fuse_norms: Annotated[
        FuseNorms,
        typer.Option(
            help="Fuse norms into the weights, as `veil compile` does: half the round trips, about twice the weights. Not "
            "with --widths."
        ),
    ] = FuseNorms.off,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="D,D,...",
            help="Instead of --model, a Llama of four layers at each of these hidden sizes, such as 512,1024,2048,4096; "
            "with --signal, input widths.",
        ),
    ] = None,
    signal: Annotated[
        bool,
        typer.Option(
            "--signal",
            help="Instead of a model, signal to noise of one encrypted layer by its width, for Gaussian inputs and weights, "
            "beside the prediction; a minute.",
        ),
    ] = False,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="RECORD", help="Measure nothing; show and draw this record. May be repeated."),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the record; `-` prints it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|.svg", help="Draw a figure (needs matplotlib).")] = None,
    figure: Annotated[
        BenchFigure | None,
        typer.Option(
            help="Which: a token's `phases`; `bytes` a token; seconds a row by the `rows` of a prompt; a token over "
            "`links`; or of a series, `widths` or `signal`.",
            show_default="phases, or the series' own",
        ),
    ] = None,
) -> None:
    """Measure what encryption costs on this machine: plaintext, veil and a peer in one run.

    A token's time has an offline part (before the input is known, nobody waits) and an online part, of both sides. Each is
    split into phases and compared with the memory bandwidth and the multiply-add peak measured in the same run. Prompts are
    measured by the row, offline part included, against plaintext. A last table predicts a token's time over network links:
    there is one round trip for each group of layers, so at 20 ms the round trips are most of it.

    The record has `token_s` with `total`, `offline`, `online`, `plaintext`, `peer`; `ratio` with `plaintext_total`,
    `plaintext_offline`, `plaintext_online`, `peer` (how many times faster than it), `floor` (total over the time that
    to read the required bytes once) and `clear_bytes`; `prompts`, each with its `ratio`; `bytes_per_token`; phases, limits,
    memory, machine, commit, versions.

    Nothing else should run meanwhile. `gpt2` takes about three minutes, its peer two more.
    """
    if context.invoked_subcommand is not None:
        return
    missing = [path for path in from_ or () if not path.is_file()]
    if missing and (widths, signal, as_json) == (None, False, None):
        raise ValueError(f"{missing[0]} is not a record of 'veil bench': there is no such file; check the path")
    sign_of_life()
    from veil.bench.run import RunRequest
    from veil.commands import bench

    bench.bench(
        bench.BenchRequest(
            run=RunRequest(
                model=model,
                mode=mode.value,
                device=device.value,
                prompts=bench.parse_numbers("--prompt-rows", prompt_rows),
                new_tokens=new_tokens,
                repeats=repeats,
                plaintext=plaintext,
                peer=peer is not None,
                install_peer=install_peer,
                fuse_norms=fuse_norms.value,
                busy=busy,
            ),
            widths=bench.parse_numbers("--widths", widths),
            signal=signal,
            records=tuple(from_ or ()),
            figure=figure.value if figure else None,
            json=as_json,
            plot=plot,
        )
    )
