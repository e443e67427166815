"""`veil cache`: what veil keeps on disk of conversations, and its removal."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from veil.cache import states_folder
from veil.cli.options import AsJson


def command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove it all.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what `veil gateway --cache-gib` keeps of prompts, or remove it.

    Files are encrypted, so only sizes and ages are known here. The key in the system's keyring, or the passphrase, stays.
    """
    folder = states_folder()
    files = sorted(folder.glob("*.kv")) if folder.is_dir() else []
    total = sum(file.stat().st_size for file in files)
    if clear:
        for file in files:
            file.unlink(missing_ok=True)
    if as_json:
        found = [{"name": file.name, "bytes": file.stat().st_size} for file in files if file.exists()]
        typer.echo(json.dumps({"path": str(folder), "files": found, "removed": len(files) if clear else 0}))
        return
    if clear:
        typer.echo(f"removed {len(files)} states, {total:,} bytes")
        return
    for file in files:
        days = (time.time() - file.stat().st_mtime) / 86400
        typer.echo(f"{file.stem[:8]}  {file.stat().st_size:>14,} bytes  used {days:.1f} days ago")
    typer.echo(f"{len(files)} states, {total:,} bytes in {folder}")
