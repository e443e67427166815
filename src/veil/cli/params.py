"""`veil params`: its options and help; `veil.commands.params` does the work."""

from __future__ import annotations

from veil.cli.options import AsJson


def command(
    as_json: AsJson = False,
) -> None:
    """Show the parameter set that veil uses and the estimates of its security."""
    from veil.commands.params import run

    run(as_json=as_json)
