"""Which model a command is to open, as its options say; nothing is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from veil.bundle.terms import STRICT, Terms

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.runtime.padding import Padding


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model answers: a server's, with a bundle's client half; a bundle's, or a model's, in this process.

    ``name`` is what it is called; without one, what its bundle says that it was made from.
    """

    name: str | None = None
    model: str = "smollm2"
    bundle: Path | None = None
    device: str = "auto"
    server: Address | None = None
    server_bundle: str | None = None
    fuse_norms: str = "auto"
    terms: Terms = STRICT
    adapters: tuple[str, ...] = ()
    checked: str = "auto"
    padding: Padding | None = None
