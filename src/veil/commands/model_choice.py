"""From the options that `veil gateway` and `veil chat` share to a model that answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from veil.bundle.header_file import HEADER
from veil.client.session import OfflineRows
from veil.commands.choice import ModelChoice
from veil.commands.models import connected, opened_model
from veil.commands.terminal import Reporter
from veil.gateway.health import ServerHealth
from veil.gateway.served import ServedModel
from veil.hybrid.model import HybridFHEModel
from veil.kernels.backend import kernels_for
from veil.process import keep_out_of_dumps
from veil.progress import Progress
from veil.runtime.saved_model import TOKENIZER
from veil.sources.models import name_of
from veil.sources.processors import processor_in

if TYPE_CHECKING:
    from veil.client.connection import Address


def server_answers(server: Address) -> bool:
    """Whether a server answers its health service within two seconds, over a connection that is made now."""
    from veil.client.reach import answers

    return answers(server)


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
        if choice.adapters:
            from veil.training.adapters import load_adapters

            served.adapters = load_adapters(served.net, choice.adapters)
        if served.health is not None:
            served.health.start()
        yield served
    finally:
        if served.health is not None:
            served.health.close()
        served.hybrid.close()


def _open(choice: ModelChoice, progress: Progress) -> ServedModel:
    if choice.server is not None:
        return _connect(choice, choice.server, progress)
    kernels_for(choice.device)  # an absent GPU is told of before the long work
    if choice.bundle is not None:
        hybrid = HybridFHEModel.load(choice.bundle, device=choice.device, progress=progress, terms=choice.terms)
        name, tokenizer = said_name(choice.bundle) or choice.bundle.resolve().name, hybrid.tokenizer
    else:
        hybrid, _ = opened_model(choice.model, bits=8, modules="linear", device=choice.device, progress=progress)
        name, tokenizer = name_of(choice.model), hybrid.tokenizer
    hybrid.offline_rows = OfflineRows()
    if choice.checked == "require":
        hybrid.check_answers(name)
    hybrid.set_fhe_mode("execute")
    served = ServedModel(choice.name or name, hybrid, tokenizer)
    served.see(processor_in(choice.model if choice.bundle is None else _tokenizer_in(choice.bundle), served.net.config))
    return served


def _connect(choice: ModelChoice, server: Address, progress: Progress) -> ServedModel:
    hybrid, folder = connected(
        server,
        bundle=choice.bundle,
        name=choice.server_bundle,
        terms=choice.terms,
        fuse_norms=choice.fuse_norms,
        offline_rows=OfflineRows(),
        progress=progress,
        checked=choice.checked,
    )
    name = choice.name or choice.server_bundle or said_name(folder)
    name = name or (name_there(folder, server) if choice.bundle is None else _name_of(folder))
    served = ServedModel(name, hybrid, hybrid.tokenizer, server.target)
    served.see(processor_in(_tokenizer_in(folder), served.net.config))
    served.health = health_of(server, served)
    return served


def health_of(server: Address, served: ServedModel) -> ServerHealth:
    """What looks after the server of a model, and tells the operator on standard error."""
    stats = served.hybrid.stats

    def told(answers: bool) -> None:
        if answers:
            print(f"veil: {server.target} answers again", file=sys.stderr, flush=True)
            served.expect(0, 1)  # rows that could not be made are made now
        else:
            print(
                f"veil: {server.target} does not answer; {served.name} waits for it and goes on when it is back",
                file=sys.stderr,
                flush=True,
            )

    return ServerHealth(lambda: server_answers(server), lambda: (stats.trips + stats.rows_made, stats.reconnects), told)


def _tokenizer_in(folder: Path) -> Path:
    """Where a bundle, or a client half, has its tokenizer and what is beside it."""
    return (folder / "client" if (folder / "client").is_dir() else folder) / TOKENIZER


def said_name(folder: Path) -> str | None:
    """What the model of a bundle is called by whoever compiled it; None where nobody said."""
    from veil.wire.failures import printable

    half = folder / "client" if (folder / "client").is_dir() else folder
    try:
        said = json.loads((half / HEADER).read_text()).get("model")
    except (OSError, ValueError, AttributeError):
        return None
    return printable(said) or None if isinstance(said, str) else None


def name_there(folder: Path, server: Address) -> str:
    """What the server calls the bundle whose fetched half is in a folder that its digest names."""
    from veil.client.connection import Connection
    from veil.network.timeouts import Timeouts

    connection = Connection(server, Timeouts())
    try:
        return next((bundle.name for bundle in connection.describe() if bundle.digest == folder.name), folder.name)
    finally:
        connection.close()


def _name_of(folder: Path) -> str:
    """What a bundle's folder is called; the folder above a half that is called ``client``."""
    path = folder.resolve()
    return path.parent.name if path.name == "client" else path.name
