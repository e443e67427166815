"""The way to a server: a client half that is opened, and a session with the server that has the other one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from veil.bundle.header_file import half_digest
from veil.bundle.terms import Terms
from veil.client.caught import CaughtServers
from veil.client.connection import Address
from veil.client.remote import RemoteTransport
from veil.client.session import OfflineRows
from veil.client.tables import fetch_tables
from veil.network.timeouts import Timeouts
from veil.runtime import saved_model

if TYPE_CHECKING:
    from veil.hybrid.sides import Sides
    from veil.runtime.saved_model import Opened


def opened_half(bundle: str | Path, address: Address, timeouts: Timeouts, terms: Terms) -> tuple[Path, Opened]:
    """A bundle's client half and its folder; public tables that it lacks come from the server. Refuses caught servers."""
    folder = Path(bundle) / "client" if (Path(bundle) / "client").is_dir() else Path(bundle)
    CaughtServers().check(address.target)
    fetch_tables(folder, address, timeouts, terms)
    return folder, saved_model.load_client(folder, terms)


def open_remote(
    sides: Sides, folder: Path, opened: Opened, address: Address, name: str | None, timeouts: Timeouts, checked: str
) -> None:
    """Open the session of mode ``remote``, with checked answers where there are vectors for the half in ``folder``."""
    from veil.checks.choice import chosen_vectors

    half, caught = half_digest(folder), CaughtServers()
    sides.tables = opened.tables
    sides.vectors = chosen_vectors(checked, half, sides.compiled.manifest, folder)
    sides.offline_rows = sides.offline_rows or OfflineRows()
    model = sides.client_model()
    transport = RemoteTransport(model, address, sides.kernels, sides.stats, timeouts, half, name)
    checks = sides.answer_checks(lambda _: caught.add(address.target))
    if checks is not None:
        checks.keep(half, address.target)
    sides.remote = sides.open_session(transport, checks, timeouts=timeouts)
