"""From the options that `veil gateway` and `veil chat` share to a model that answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from veil.client.session import Ahead
from veil.commands.models import connected, opened_model
from veil.commands.terminal import Reporter
from veil.gateway.served import ServedModel
from veil.kernels.backend import kernels_for
from veil.model.hybrid import HybridFHEModel
from veil.model.padding import Padding
from veil.model.sources import name_of
from veil.model.terms import STRICT, Terms
from veil.process import keep_out_of_dumps
from veil.progress import Progress

if TYPE_CHECKING:
    from veil.client.connection import Address


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model answers: a server's, with a bundle's client half; a bundle's, or a model's, in this process."""

    model: str = "smollm2"
    bundle: Path | None = None
    device: str = "auto"
    server: Address | None = None
    server_bundle: str | None = None
    fold_norms: str = "auto"
    terms: Terms = STRICT
    padding: Padding | None = None


@contextmanager
def opened(choice: ModelChoice) -> Iterator[ServedModel]:
    """The model with its session open and rows on their way; both are forgotten at the end. veil's errors."""
    keep_out_of_dumps()
    with Reporter() as reporter:
        served = _open(choice, reporter.report)
    if choice.padding is not None and choice.padding.step >= served.context_length:
        served.hybrid.close()
        raise ValueError(f"--pad has steps of {choice.padding.step}, the model takes {served.context_length}; use less")
    served.hybrid.padding = choice.padding
    try:
        yield served
    finally:
        served.hybrid.close()


def _open(choice: ModelChoice, progress: Progress) -> ServedModel:
    if choice.server is not None:
        return _connect(choice, choice.server, progress)
    kernels_for(choice.device)  # an absent GPU is told of before the long work
    if choice.bundle is not None:
        hybrid = HybridFHEModel.load(choice.bundle, device=choice.device, progress=progress, terms=choice.terms)
        name, tokenizer = choice.bundle.resolve().name, hybrid.tokenizer
    else:
        hybrid, _ = opened_model(choice.model, bits=8, modules="linear", device=choice.device, progress=progress)
        name, tokenizer = name_of(choice.model), hybrid.tokenizer
    hybrid.ahead = Ahead()
    hybrid.set_fhe_mode("execute")
    return ServedModel(name, hybrid, tokenizer)


def _connect(choice: ModelChoice, server: Address, progress: Progress) -> ServedModel:
    hybrid, folder = connected(
        server,
        bundle=choice.bundle,
        name=choice.server_bundle,
        terms=choice.terms,
        fold_norms=choice.fold_norms,
        ahead=Ahead(),
        progress=progress,
    )
    name = choice.server_bundle or (_name_there(folder, server) if choice.bundle is None else _name_of(folder))
    return ServedModel(name, hybrid, hybrid.tokenizer, server.target)


def _name_there(folder: Path, server: Address) -> str:
    """What the server calls the bundle whose fetched half is in a folder that its digest names."""
    from veil.client.connection import Connection
    from veil.wire.patience import Patience

    connection = Connection(server, Patience())
    try:
        return next((bundle.name for bundle in connection.describe() if bundle.digest == folder.name), folder.name)
    finally:
        connection.close()


def _name_of(folder: Path) -> str:
    """What a bundle's folder is called; the folder above a half that is called ``client``."""
    path = folder.resolve()
    return path.parent.name if path.name == "client" else path.name
