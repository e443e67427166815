"""`veil params`: the default parameter set and its security estimates."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

from veil.params import Params


def run(*, as_json: bool) -> None:
    """Print the default set, as a table or as one JSON object."""
    params = Params.default()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "security_bits": params.security_bits,
                    "core_svp_bits": params.core_svp_bits,
                    "outer_primes": list(params.outer_primes),
                    "mu_prime": params.mu_prime,
                    "batch_rows": params.T,
                    "batch_bytes": params.batch_bytes,
                    "spec": params.spec.to_dict(),
                }
            )
        )
        return
    table = Table(title="veil's default parameters", title_justify="left")
    table.add_column("parameter")
    table.add_column("value", overflow="fold")
    for name, value in params.describe():
        table.add_row(name, value)
    Console().print(table)
