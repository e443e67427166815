"""`veil compile`: a model becomes a bundle on disk."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import typer
from rich.table import Table

from veil.bundle.client_half import TABLES
from veil.bundle.header_file import half_digest
from veil.checks.files import path_of, save_vectors
from veil.commands.models import compiled
from veil.commands.terminal import Reporter, error_console
from veil.runtime.experts import ExpertLeak
from veil.runtime.local_parts import LocalPart, local_parts
from veil.runtime.modules import select_modules
from veil.runtime.saved_model import TOKENIZER
from veil.sources.models import Task, load_model
from veil.sources.processors import processor_in


def run(
    model: str,
    out: Path,
    *,
    bits: int,
    modules: str,
    fuse_norms: str,
    as_json: bool,
    task: Task = "auto",
    expert_leak: ExpertLeak = "none",
    trainable: bool = False,
    checks: bool = False,
) -> None:
    """Compile ``model`` into the folder ``out`` and say what it holds.

    Raises `ValueError` when ``out`` exists and is not an empty folder, and `OSError` when it cannot be made, before any
    work.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already; remove it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    local: tuple[LocalPart, ...] = ()
    with Reporter() as reporter:
        source = load_model(model, task=task, progress=reporter.report)
        local = local_parts(source.model, select_modules(source.model, modules, tell=False))
        hybrid = compiled(
            source,
            bits=bits,
            modules=modules,
            progress=reporter.report,
            fuse_norms=fuse_norms,
            expert_leak=expert_leak,
            trainable=trainable,
        )
        count = len(hybrid.module_names)
        hybrid.save(out, tokenizer=processor_in(model, source.model.config) or source.tokenizer)
        if checks:
            save_vectors(half_digest(out / "client"), hybrid.sign_vectors(source.name))
    client_bytes, server_bytes = (_bytes_under(out / half) for half in ("client", "server"))
    tokenizer, tables = _bytes_under(out / "client" / TOKENIZER), (out / "client" / TABLES).stat().st_size
    took_s = round(time.perf_counter() - start, 3)
    summary = {
        "model": source.name,
        "path": str(out),
        "bits": bits,
        "remote_modules": count,
        "local_modules": [asdict(part) for part in local],
        "trips": len(hybrid.manifest.forward),
        "fused_norms": len([group for group in hybrid.manifest.groups if group.fusion]),
        "unfused_norms": list(hybrid.unfused),
        "trainable": trainable,
        "security_bits": hybrid.params.security_bits,
        "digest": half_digest(out / "client"),
        "client_bytes": client_bytes,
        "server_bytes": server_bytes,
        "tokenizer_bytes": tokenizer,
        "public_table_bytes": tables,
        "seconds": took_s,
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(str(out))
    table = Table(show_header=False)
    table.add_row("model", source.origin)
    table.add_row("remote modules", f"{count}, weights of {bits} bits")
    if local:
        table.add_row("computed by the client", "\n".join(map(str, local)))
    fused = f"{summary['trips']} round trips a token, {summary['fused_norms']} norms fused"
    table.add_row("network", fused + "".join(f"\nnot fused: {reason}" for reason in hybrid.unfused[:1]))
    rest = client_bytes - tokenizer - tables
    table.add_row("client's half", f"{client_bytes:,} bytes, digest {summary['digest']}")
    table.add_row("  the model's rest", f"{rest:,} bytes")
    table.add_row("  public tables of the rows", f"{tables:,} bytes")
    table.add_row("  tokenizer", f"{tokenizer:,} bytes")
    table.add_row("server's half", f"{server_bytes:,} bytes")
    if checks:
        table.add_row("sign vectors", f"{path_of(half_digest(out / 'client'))}, secret")
    table.add_row("time", f"{took_s:.1f} s")
    error_console().print(table)


def _bytes_under(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
