"""`veil compile`: its options and help; `veil.commands.compile` does the work."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from veil.cli.options import AsJson, Bits, ExpertLeak, FuseNorms, Model, Modules, check_model, check_new_folder
from veil.cli.reach import sign_of_life


class Task(str, Enum):
    """What a model is loaded for."""

    auto = "auto"
    embed = "embed"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist, or be empty.")],
    bits: Bits = 8,
    modules: Modules = "linear",
    fuse_norms: Annotated[
        FuseNorms,
        typer.Option(
            help="Fuse norms into the weights: half the round trips, about twice the weights. `auto` fuses what the model "
            "allows, `on` fails with a reason if something cannot be fused."
        ),
    ] = FuseNorms.auto,
    task: Annotated[
        Task, typer.Option(help="`auto`: the model class that the checkpoint names, `embed`: without its head, for vectors.")
    ] = Task.auto,
    expert_leak: Annotated[
        ExpertLeak,
        typer.Option(
            help="For mixtures of experts: `none` evaluates every expert for every row; `reveal` only the routed ones, "
            "which shows the server which they are."
        ),
    ] = ExpertLeak.none,
    trainable: Annotated[
        bool,
        typer.Option(
            "--trainable",
            help="Make what `veil finetune` needs: transposed weights and their hint, twice the memory. No norm is fused.",
        ),
    ] = False,
    checks: Annotated[
        bool,
        typer.Option(
            "--checks",
            help="Make your own secret vectors too, as `veil check` does, to check a server with this bundle. "
            "They go to your data folder, never into the bundle.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Split a model into a bundle: `OUT/client` for you, `OUT/server` for the machine that computes.

    The server's folder holds the integer weights of the remote layers and a public seed; the client's everything else.
    """
    check_model(model)
    check_new_folder(out)
    sign_of_life()
    from veil.commands.compile import run

    run(
        model,
        out,
        bits=bits,
        modules=modules,
        fuse_norms=fuse_norms.value,
        task=task.value,
        expert_leak=expert_leak.value,
        trainable=trainable,
        checks=checks,
        as_json=as_json,
    )
