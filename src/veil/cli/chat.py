"""`veil chat`: its options and help; `veil.commands.chat` does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from veil.cli.groups import grouped
from veil.cli.options import (
    Bundle,
    Checked,
    Consent,
    Device,
    FuseNorms,
    OtherModel,
    Pad,
    Server,
    ServerAccess,
    ServerBundle,
    ServingDevice,
    WhichChecked,
    WhichFusion,
    model_choice,
)
from veil.cli.reach import sign_of_life


@grouped
def command(
    *,
    model: OtherModel = None,
    bundle: Bundle = None,
    server: Server = None,
    name: ServerBundle = None,
    fuse_norms: WhichFusion = FuseNorms.auto,
    system: Annotated[str, typer.Option(help="Instructions for the model.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token every time; higher is more varied.")
    ] = 0.3,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample among the likeliest tokens of this total probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default="random")] = None,
    device: ServingDevice = Device.auto,
    server_access: ServerAccess,
    consent: Consent,
    checked: WhichChecked = Checked.auto,
    pad: Pad = "off",
) -> None:
    """Talk to a model in the terminal; rows are made while you type.

    Enter sends, Alt+Enter starts a line, Ctrl-C stops an answer, Ctrl-D leaves; `/reset`, `/retry`, `/stats`, `/help`.
    History lives in memory only. Without a terminal each line of standard input is a message and gets its answer.
    """
    choice = model_choice(
        model,
        bundle,
        server,
        name,
        fuse_norms,
        device,
        server_access,
        consent,
        checked=checked,
        pad=pad,
    )
    sign_of_life()
    from veil.commands.ahead import begin_rendering, load_libraries

    begin_rendering()
    load_libraries()
    from veil.commands.chat import run
    from veil.commands.conversation import ChatOptions

    run(
        ChatOptions(
            choice=choice,
            system=system,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
    )
