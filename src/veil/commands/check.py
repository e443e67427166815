"""`veil check`: a client half against trusted weights, and the vectors that check its server's answers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import typer
from rich.table import Table

from veil.bundle.header_file import HEADER, half_digest
from veil.bundle.terms import Terms
from veil.checks.files import save_vectors
from veil.client.caught import CaughtServers
from veil.commands.terminal import Reporter, error_console
from veil.errors import BundleError
from veil.sources.models import name_of


def run(model: str, half: Path, *, terms: Terms, as_json: bool) -> None:
    """Check the half in the folder ``half`` against ``model``, write its vectors, and say what was seen.

    Raises `HalfDiffers`, `ModelSourceError`, `BundleError`.
    """
    from veil.trust.half import check_half

    folder = half / "client" if (half / "client").is_dir() else half
    if not (folder / HEADER).is_file():
        raise BundleError(f"{half} holds no client half; fetch one with 'veil pull', or name a bundle's folder")
    start = time.perf_counter()
    digest = half_digest(folder)
    with Reporter() as reporter:
        vectors, findings = check_half(folder, model, terms, reporter.report, name=name_of(model))
    path = save_vectors(digest, vectors)
    summary = {
        "model": vectors.against,
        "origin": findings.origin,
        "half": str(folder),
        "digest": digest,
        "bits": findings.bits,
        "path": str(path),
        "vector_bytes": path.stat().st_size,
        "residuals": sum(own.sums.shape[0] * own.sums.shape[1] for own in vectors.groups),
        "least_change": round(max(findings.changes, default=0.0), 3),
        "loss": round(max(findings.losses, default=1.0), 2),
        "on_trust": findings.trusted,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(str(path))
    table = Table(show_header=False)
    table.add_row("half", f"is {findings.origin}'s, digest {digest}")
    table.add_row("weights", f"of {findings.bits} bits; rounding loses {summary['loss']} times as much as plainly, at most")
    table.add_row("sign vectors", f"{summary['vector_bytes']:,} bytes, secret; {summary['residuals']:,} checks a row")
    least = f"a slot changed by {summary['least_change']} of its size, at most; less within some rows"
    table.add_row("caught in one row", least)
    table.add_row("taken on trust", "\n".join(findings.trusted))
    table.add_row("time", f"{summary['seconds']:.1f} s")
    error_console().print(table)


def forgive(server: str, *, as_json: bool) -> None:
    """Ask a server again that was caught; `ValueError` for one that was not."""
    if not CaughtServers().forgive(server):
        raise ValueError(f"{server} is not among the servers that gave wrong answers")
    typer.echo(json.dumps({"forgiven": server}) if as_json else f"{server} is asked again")
