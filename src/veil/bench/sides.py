"""Client and server, ready to measure: in one process, or the server in another on loopback."""

from __future__ import annotations

import gc
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veil.bench.generation import random_prompt
from veil.bench.served import ServerProcess
from veil.bench.subjects import Loaded, release_floats
from veil.bench.watch import AHEAD, Spent, Watch, kernel_targets, synchronizing
from veil.client.session import Ahead
from veil.kernels.backend import kernels_for
from veil.model.hybrid import HybridFHEModel
from veil.model.layers import RemoteLayer
from veil.model.modules import select_modules
from veil.model.quiet import quiet
from veil.model.terms import Terms
from veil.params import Params
from veil.progress import Progress
from veil.server.engine import Engine

MODES = ("execute", "remote")


STATIC_CACHE: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
"""What makes one CUDA graph of a token's pass: a key-value cache of fixed size, without torch's own compiler."""


@dataclass(frozen=True, eq=False)
class Sides:
    """A model whose remote layers are encrypted, the class of its transport, and the server's process if it has one.

    ``on_card``: both halves and the layers between them are on one card, where a token's pass is one graph.
    """

    hybrid: HybridFHEModel
    transport: type[Any]
    server: ServerProcess | None
    device: str
    on_card: bool = False

    def watch(self) -> Watch:
        """Watches remote layers, kernels, and calls to the other side: ``remote layers``, phases, ``other side``.

        On a card only what makes masks: nothing may wait inside a pass that is recorded.
        """
        if self.on_card:
            ahead = [target for target in kernel_targets(kernels_for("cuda")) if target[2] in AHEAD]
            return Watch([*ahead, *self._uploads()], synchronizing(kernels_for("cuda")))
        targets: list[tuple[Any, str, str]] = [(RemoteLayer, "forward", "remote layers")]
        targets += self._uploads()
        targets += [(self.transport, "evaluate", "round trip")]
        client, server = kernels_for("cpu"), kernels_for(self.device)
        targets += kernel_targets(client)
        if server is not client and self.server is None:
            targets += kernel_targets(server)
        return Watch(targets, synchronizing(server) if self.server is None else None)

    def _uploads(self) -> list[tuple[Any, str, str]]:
        return [(self.transport, name, "other side") for name in ("prepare", "load_epoch")]

    def server_spent(self) -> Mapping[str, Spent]:
        """What the server's process spent since the last call; nothing in one process, where the watch sees all."""
        return self.server.take() if self.server else defaultdict(lambda: Spent(0.0, 0))


@contextmanager
def opened(
    loaded: Loaded,
    mode: str,
    device: str,
    progress: Progress,
    params: Params | None = None,
    fold_norms: str = "off",
) -> Iterator[Sides]:
    """Compile a model, which loses its float layers, and set both sides up; a `ValueError` for another mode.

    A model on a card stays there, with both halves. With a server's process the model here is dropped: the client reads its
    half of the bundle like any other.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    hybrid = HybridFHEModel(loaded.model, select_modules(loaded.model, "linear"))
    with quiet():
        sample = random_prompt(loaded.model, 4)
        hybrid.compile_model(sample, device=device, progress=progress, params=params, fold_norms=fold_norms)
    release_floats(loaded.model)
    gc.collect()
    if mode == "execute":
        hybrid.set_fhe_mode("execute")
        try:
            together = next(hybrid.model.parameters()).is_cuda
            yield _on_card(hybrid) if together else Sides(hybrid, Engine, None, device)
        finally:
            hybrid.close()
        return
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        path = Path(folder) / "bundle"
        with quiet():
            hybrid.save(path)
        del hybrid
        loaded.model = None
        gc.collect()
        yield from _remote(path, device)


def _on_card(hybrid: HybridFHEModel) -> Sides:
    from veil.server.device_engine import DeviceEngine

    return Sides(hybrid, DeviceEngine, None, "cuda", on_card=True)


def _remote(path: Path, device: str) -> Iterator[Sides]:
    from veil.client.remote import RemoteTransport

    with ServerProcess(path / "server", device) as server:
        hybrid = HybridFHEModel.connect(
            f"127.0.0.1:{server.port}",
            path / "client",
            ahead=Ahead(tokens=0, prompt_rows=0),
            terms=Terms(no_cryptography=True, expert_leak="reveal"),  # it was made here
        )
        try:
            yield Sides(hybrid, RemoteTransport, server, device)
        finally:
            hybrid.close()
