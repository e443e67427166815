"""`veil doctor`: its options and help; `veil.commands.doctor` does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from veil.cli.options import AsJson
from veil.cli.reach import sign_of_life


def command(
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Try to reach this server too, without a token or a session.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine: versions, PyTorch's build, threads, kernels, GPU, cache, disk, network.

    Each line is **ok**, **note** (it works, and could be better) or **problem** (something will fail), with what to do.
    The exit code is 1 if there is a problem.

    With `--json`: a list of objects with `name`, `state`, `found`, `remedy`.
    """
    sign_of_life()
    from veil.commands.doctor import run

    run(server=server, as_json=as_json)
