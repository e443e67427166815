"""Both halves of a compiled model on one CUDA device: what `hybrid` uses when the model itself is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.client.device_session import DeviceSession
from veil.client.session import ClientModel
from veil.client.stats import Stats
from veil.model.compiled import Compiled
from veil.model.device_router import ClearService, DeviceRouter, scalings
from veil.model.token_graph import TokenGraph
from veil.random import SecretRng
from veil.server.device_engine import DeviceEngine
from veil.server.engine import Engine


class Card:
    """The client's half on the card: the router of the model's layers, and a service for each mode."""

    def __init__(self, compiled: Compiled) -> None:
        self.router = DeviceRouter(compiled.manifest, compiled.constants)
        self._compiled = compiled
        self._scalings = scalings(compiled.constants)

    def clear(self, *, simulate: bool) -> ClearService:
        """The integer layers in clear, or with predicted noise."""
        compiled = self._compiled
        assert compiled.weights is not None
        return ClearService(compiled.params, compiled.manifest, compiled.weights, self._scalings, simulate=simulate)

    def open(self, engine: Engine, tables: dict[str, NDArray[np.uint32]], stats: Stats) -> DeviceSession:
        """A session with fresh keys, beside an engine whose weights and hint are on the card."""
        compiled = self._compiled
        model = ClientModel(compiled.params, compiled.seed, compiled.manifest, tables)
        arithmetic: Any = engine.arithmetic
        beside = DeviceEngine(engine.model, engine.hint, arithmetic)
        return DeviceSession(model, beside, self._scalings, SecretRng(), stats)

    def graph(self, forward: Callable[..., Any], session: DeviceSession) -> TokenGraph:
        """One-row passes of the model's own ``forward`` with a session's steps in them."""
        return TokenGraph(forward, session)
