"""Whether answers are checked: as the user asks, with the vectors that are kept for the half."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from veil.bundle.manifest import Manifest
from veil.checks.files import Vectors, load_vectors
from veil.errors import Unchecked

Checked = Literal["require", "auto", "off"]
CHECKED: tuple[Checked, ...] = ("require", "auto", "off")


def chosen_vectors(checked: str, half: str, manifest: Manifest, folder: Path) -> Vectors | None:
    """The vectors to check a server's answers with, or None: ``require`` insists, ``auto`` takes what there is.

    `Unchecked` where there have to be some and are none, `ValueError` for another word.
    """
    if checked not in CHECKED:
        raise ValueError(f"checked is {checked!r}, expected one of {', '.join(CHECKED)}")
    if checked == "off":
        return None
    found = load_vectors(half, manifest)
    if found is None and checked == "require":
        raise Unchecked(
            f"there is nothing to check this server's answers against; make it once from weights that you trust: "
            f"veil check MODEL --half {folder} (or allow unchecked answers with --checked auto)"
        )
    return found
