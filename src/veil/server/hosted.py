"""The bundles that a server hosts: loaded from their server halves, with their hints and the client halves it offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from veil.bundle.server_half import client_digest, load_server
from veil.errors import BundleError
from veil.kernels.interface import Kernels
from veil.priority import in_thread_of_its_own
from veil.progress import Progress
from veil.server.engine import Engine
from veil.server.gpus import ServerGpu, engines
from veil.server.offer import Offer
from veil.server.warm import warm_up


@dataclass(frozen=True, eq=False)
class HostedBundle:
    """One bundle: its engine, the digest of the client half that goes with it and, where it is offered, its files.

    ``copies`` are other engines of it, on other GPUs; ``placed`` says how it lies on them.
    """

    engine: Engine
    digest: str
    offer: Offer | None = None
    copies: tuple[Engine, ...] = ()
    placed: str = ""


def build_bundles(
    halves: dict[str, Path],
    offers: dict[str, Path],
    kernels: Kernels,
    progress: Progress | None = None,
    hints: Path | None = None,
    gpus: Sequence[ServerGpu] = (),
    memory_bytes: int = 1 << 32,
) -> dict[str, HostedBundle]:
    """Load server halves by name and build their hints; ``offers`` are client halves by the same names,
    ``hints`` a folder where hints are kept for the next start. With several ``gpus`` they lie on those, beside
    ``memory_bytes`` for batches of rows.
    """
    unknown = sorted(set(offers) - set(halves))
    if unknown:
        raise ValueError(f"--offer names {unknown[0]!r}, which is not served; served are {', '.join(halves)}")
    warm_up(progress, on_gpu=kernels.name == "cuda")
    bundles = {}
    for name, path in halves.items():
        digest = client_digest(path)
        offer = Offer(offers[name]) if name in offers else None
        if offer is not None and offer.digest != digest:
            raise BundleError(
                f"{offers[name]} is not the client half that was compiled with {path}: its digest is {offer.digest}, not "
                f"{digest}; offer the one beside it"
            )
        if len(gpus) > 1:
            build = partial(engines, load_server(path), gpus, memory_bytes, progress)
            made, placed = in_thread_of_its_own(build)
            bundles[name] = HostedBundle(made[0], digest, offer, tuple(made[1:]), placed)
            continue
        engine = in_thread_of_its_own(partial(Engine.build, load_server(path), kernels, progress, hints))
        bundles[name] = HostedBundle(engine, digest, offer)
    return bundles


def server_half(folder: Path) -> Path:
    """The server half in the folder of a bundle, or the folder itself."""
    return folder / "server" if (folder / "server").is_dir() else folder


def name_of(folder: Path) -> str:
    """What a bundle is called: its folder's name, or the name above that of a half."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == "server" else whole.name
