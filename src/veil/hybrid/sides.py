"""Both halves of a compiled model, as far as this process holds them: kernels, engine, sessions, evaluators of modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veil.bundle.client_half import ClientModel
from veil.bundle.compiled import Compiled
from veil.bundle.constants import scalings_of
from veil.bundle.server_half import ServerModel
from veil.checks import warm as checks
from veil.client.session import ClientSession, OfflineRows
from veil.client.stats import Stats
from veil.errors import NotCompiled
from veil.hybrid.token_graph import TokenGraph
from veil.kernels import warm
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Array, Kernels, Scaling
from veil.kernels.warm import warm_up
from veil.network.timeouts import Timeouts
from veil.progress import Progress
from veil.random import SecretRng
from veil.runtime.evaluators import ClearLayers, Evaluator, SimulatedLayers
from veil.runtime.residual import ResidualStream
from veil.runtime.router import Router
from veil.runtime.tied_head import tied_head
from veil.server.engine import Engine
from veil.server.local import LocalServer
from veil.wire.transport import Transport

if TYPE_CHECKING:
    from veil.checks.candidates import ExactCandidates
    from veil.checks.files import Vectors
    from veil.checks.rows import AnswerChecks


class Sides:
    """The client's half of a compiled model and, where its weights are here, the server's; each part made at its first use.

    The client's half is where ``model`` is: on the GPU beside the server's half, or on this processor. ``follow`` is told of
    the router that answers for remote layers, and of the next one when the model has moved. ``forward`` is the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., object],
        compiled: Compiled,
        kernels: Kernels,
        stats: Stats,
        follow: Callable[[Router], None],
        progress: Progress | None = None,
    ) -> None:
        self.compiled = compiled
        self.stats = stats
        self.server_kernels = kernels
        self.engine: Engine | None = None
        self.tables: dict[str, NDArray[np.uint32]] = {}
        self.local: ClientSession | None = None
        self.remote: ClientSession | None = None
        self.graph: TokenGraph | None = None
        self.vectors: Vectors | None = None
        self.offline_rows: OfflineRows | None = None
        self.hints: Path | None = None
        self.router: Router
        self.kernels: Kernels
        self.scalings: list[Scaling]
        self._model = model
        self._tied = tied_head(model, compiled.manifest)
        self._forward = forward
        self._follow = follow
        self._progress = progress
        self._weights: Sequence[Array] | None = None
        self._evaluators: dict[str, Evaluator] = {}
        self._placed = False
        self.place()

    def place(self) -> None:
        """Put the client's half where the model is now."""
        server = self.server_kernels
        on_gpu = server.name == "cuda" and self.remote is None and _is_on_gpu(self._model)
        kernels = server if on_gpu or server.name != "cuda" else kernels_for("cpu")
        if self._placed and kernels is self.kernels:
            return
        for part in (self.graph, self.local):
            if part is not None:
                part.close()
        self.local = self.graph = self._weights = None
        self._evaluators.clear()
        self.kernels, self._placed = kernels, True
        if kernels.name == "cpu":
            warm_up(self._progress, (warm.OWN, checks.OWN))
        compiled = self.compiled
        self.scalings = scalings_of(compiled.constants, compiled.params, kernels)
        stream = ResidualStream(self._model, compiled.manifest, asks_cheaply=kernels.asks_cheaply)
        self.router = Router(compiled.manifest, compiled.constants, kernels, stream, self._tied)
        self.stats.kernels = server.name if kernels is server else f"client {kernels.name}, server {server.name}"
        self._follow(self.router)

    @property
    def on_gpu(self) -> bool:
        """Whether the client's half is on a GPU."""
        return self.kernels.name == "cuda"

    def evaluator(self, mode: str) -> Evaluator:
        """What evaluates groups in a mode other than ``torch``, where the model is now."""
        self.place()
        if mode not in self._evaluators:
            if mode in ("disable", "simulate"):
                self._evaluators[mode] = self.clear_layers(simulate=mode == "simulate")
            elif mode == "execute":
                self.local = self.local or self._open_local()
                self._evaluators[mode] = self.local
            elif self.remote is None:
                raise NotCompiled("mode 'remote' needs a server; make the model with HybridFHEModel.connect")
            else:
                self._evaluators[mode] = self.remote
        return self._evaluators[mode]

    def session(self, mode: str) -> ClientSession | None:
        """The session of a mode, where it has one that was opened."""
        return self.remote if mode == "remote" else self.local if mode == "execute" else None

    def clear_layers(self, *, simulate: bool) -> ClearLayers:
        """The integer layers in clear, with the predicted noise if ``simulate``; `NotCompiled` without weights."""
        compiled, kernels = self.compiled, self.kernels
        weights = self.weights_here("modes disable and simulate need")
        if self._weights is None:
            engine = self.engine if self.engine is not None and self.engine.kernels is kernels else None
            self._weights = kernels.load_weights(weights) if engine is None else engine.weights
        if not simulate:
            return ClearLayers(compiled.manifest, self._weights, self.scalings, kernels)
        rng = np.random.default_rng()
        return SimulatedLayers(compiled.manifest, self._weights, self.scalings, kernels, compiled.params, rng)

    def weights_here(self, who_needs: str = "this needs") -> tuple[NDArray[np.int8], ...]:
        """The int8 weights [rows, width] of each group; `NotCompiled` where only the client's half is here."""
        if self.compiled.weights is None:
            raise NotCompiled(f"{who_needs} the weights, and only the client half of the bundle is here")
        return self.compiled.weights

    def need_engine(self) -> Engine:
        """The server's half, built at its first use; `NotCompiled` without weights."""
        if self.engine is None:
            compiled = self.compiled
            model = ServerModel(compiled.params, compiled.seed, compiled.manifest, self.weights_here())
            self.engine = Engine.build(model, self.server_kernels, self._progress, hints=self.hints)
            self.tables = self.tables or self.engine.hint.public_tables(compiled.seed, compiled.params)
        return self.engine

    def client_model(self) -> ClientModel:
        """What a session needs to know of the model."""
        compiled = self.compiled
        return ClientModel(compiled.params, compiled.seed, compiled.manifest, self.tables)

    def open_session(
        self, transport: Transport, checks: AnswerChecks | None, timeouts: Timeouts | None = None
    ) -> ClientSession:
        """A session of the client's half with fresh keys."""
        rng, offline_rows = SecretRng(), self.offline_rows
        return ClientSession(
            self.client_model(),
            transport,
            self.kernels,
            self.scalings,
            rng,
            self.stats,
            offline_rows=offline_rows,
            checks=checks,
            timeouts=timeouts,
        )

    def _open_local(self) -> ClientSession:
        server = LocalServer(self.need_engine())
        session = self.open_session(server, self.answer_checks())
        if self.on_gpu:
            self.graph = TokenGraph(self._forward, self.router, session, server)
        return session

    def answer_checks(self, caught: Callable[[str], None] | None = None) -> AnswerChecks | None:
        """What checks answers, where there are secret vectors; ``caught`` is told of the server's first wrong one."""
        from veil.checks.rows import AnswerChecks

        vectors, compiled = self.vectors, self.compiled
        if vectors is None:
            return None
        return AnswerChecks(vectors.groups, compiled.manifest, compiled.params, self.kernels, vectors.against, caught)

    def checked_against(self, mode: str) -> str | None:
        """The model whose weights the answers of a mode are checked against."""
        session = self.session(mode)
        return None if session is None or session.checks is None else session.checks.against

    def candidates(self, mode: str) -> ExactCandidates | None:
        """Where answers are checked, what computes the likeliest logits here."""
        from veil.checks.candidates import exact_candidates

        checked = self.checked_against(mode) is not None
        return exact_candidates(self._model, self.compiled.manifest) if checked else None

    def close(self) -> None:
        """End the sessions, in process and remote, and forget their keys."""
        for part in (self.graph, self.local, self.remote):
            if part is not None:
                part.close()
        self.local = self.remote = self.graph = None
        self._evaluators.clear()

    def share_weights(self, other: Sides) -> None:
        """Use the weights that another has loaded for the same model."""
        self._weights = other._weights

    def forget_weights(self) -> None:
        """Keep the client's half alone."""
        self.compiled = replace(self.compiled, weights=None)
        self.engine = self._weights = None
        self._evaluators.clear()


def _is_on_gpu(model: nn.Module) -> bool:
    first: torch.Tensor | None = next(model.parameters(), None)
    return first is not None and first.is_cuda
