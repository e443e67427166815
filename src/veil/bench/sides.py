"""Client and server, ready to measure: in one process, or the server in another on loopback."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from veil.bench.generation import random_prompt
from veil.bench.server_process import ServerProcess
from veil.bench.subjects import Loaded, release_floats
from veil.bundle.terms import Terms
from veil.client.session import OfflineRows
from veil.hybrid.model import HybridFHEModel
from veil.params import Params
from veil.progress import Progress
from veil.runtime.modules import select_modules
from veil.sources.quiet import quiet

MODES = ("execute", "remote")


STATIC_CACHE: dict[str, object] = {"cache_implementation": "static", "disable_compile": True}
"""What makes one CUDA graph of a token's pass: a key-value cache of fixed size, without torch's own compiler."""


@dataclass(frozen=True, eq=False)
class MeasuredSides:
    """A model whose remote layers are encrypted, and the server's process if it has one.

    ``on_gpu``: both halves and the layers between them are on one GPU, where a token's pass is one graph.
    """

    hybrid: HybridFHEModel
    server: ServerProcess | None
    device: str
    on_gpu: bool = False

    def finish(self) -> None:
        """Wait until a GPU has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()


@contextmanager
def opened(
    loaded: Loaded,
    mode: str,
    device: str,
    progress: Progress,
    params: Params | None = None,
    fuse_norms: str = "off",
) -> Iterator[MeasuredSides]:
    """Compile a model, which loses its float layers, and set both sides up; a `ValueError` for another mode.

    A model on a GPU stays there, with both halves. With a server's process the model here is dropped: the client reads its
    half of the bundle like any other.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    hybrid = HybridFHEModel(loaded.model, select_modules(loaded.model, "linear"))
    with quiet():
        sample = random_prompt(loaded.model, 4)
        hybrid.compile_model(sample, device=device, progress=progress, params=params, fuse_norms=fuse_norms)
    release_floats(loaded.model)
    gc.collect()
    if mode == "execute":
        hybrid.set_fhe_mode("execute")
        try:
            yield MeasuredSides(hybrid, None, device, on_gpu=next(hybrid.model.parameters()).is_cuda)
        finally:
            hybrid.close()
        return
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        path = Path(folder) / "bundle"
        with quiet():
            hybrid.save(path)
        del hybrid
        del loaded.model
        gc.collect()
        yield from _remote(path, device)


def _remote(path: Path, device: str) -> Iterator[MeasuredSides]:
    with ServerProcess(path / "server", device) as server:
        hybrid = HybridFHEModel.connect(
            f"127.0.0.1:{server.port}",
            path / "client",
            offline_rows=OfflineRows(tokens=0, prompt_rows=0),
            terms=Terms(no_cryptography=True, expert_leak="reveal"),  # it was made here
        )
        try:
            yield MeasuredSides(hybrid, server, device)
        finally:
            hybrid.close()
