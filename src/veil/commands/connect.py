"""`veil.connect`: a server's model in a program, with the client half that the server offers where none is given."""

from __future__ import annotations

from pathlib import Path

from veil.bundle.terms import STRICT, Terms
from veil.client.connection import Address
from veil.client.session import OfflineRows
from veil.commands.models import connected
from veil.hybrid.model import HybridFHEModel
from veil.progress import Progress


def connect(
    server: str,
    bundle: str | Path | None = None,
    *,
    token: str | None = None,
    tls: bool | str | Path = False,
    name: str | None = None,
    allow_no_tls: bool = False,
    terms: Terms = STRICT,
    fuse_norms: str = "auto",
    offline_rows: OfflineRows | None = None,
    checked: str = "auto",
    progress: Progress | None = None,
) -> HybridFHEModel:
    """The model that the server at ``HOST:PORT`` computes for you, in mode ``remote``; its `close` ends the session.

    Without ``bundle`` the client half that the server offers is fetched, checked and kept, as ``veil generate --server``
    does; its digest is shown on standard error the first time. ``fuse_norms`` (``on``, ``off``, ``auto`` by the distance)
    chooses among two halves of one model. The rest is as in `HybridFHEModel.connect`, whose errors it raises.
    """
    address = Address(target=server, token=token, tls=Path(tls) if isinstance(tls, str) else tls, allow_no_tls=allow_no_tls)
    return connected(
        address,
        bundle=None if bundle is None else Path(bundle),
        name=name,
        terms=terms,
        fuse_norms=fuse_norms,
        offline_rows=offline_rows or OfflineRows(),
        progress=progress or (lambda stage, done, total: None),
        checked=checked,
    )[0]
