"""Tiny models compiled for training, with adapters, and their float twins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from veil import HybridFHEModel, linear_modules
from veil.params import Params

PARAMS = Params.insecure_tiny()
IDS = torch.tensor([[1, 7, 9, 30, 41, 12, 3, 5, 22], [1, 8, 50, 31, 11, 60, 6, 15, 33]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products on several threads wait for each other, longest on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Twins:
    """A hybrid model compiled for training, what a user calls, and a float copy of that."""

    hybrid: HybridFHEModel
    model: nn.Module
    float_model: nn.Module

    def gradients(self, model: nn.Module, **inputs: Any) -> dict[str, torch.Tensor]:
        """Gradients of the loss on the fixed tokens by parameter."""
        model.zero_grad()
        model(**(inputs or {"input_ids": IDS, "labels": IDS})).loss.backward()
        return {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}

    def cosines(self, **inputs: Any) -> dict[str, float]:
        """How alike the gradients of both are."""
        ours, theirs = self.gradients(self.model, **inputs), self.gradients(self.float_model, **inputs)
        assert set(ours) == {name for name in theirs if name in ours} and ours
        return {
            name: float(nn.functional.cosine_similarity(ours[name].flatten(), theirs[name].flatten(), 0)) for name in ours
        }


def trainable(model: nn.Module, sample: Any = None, params: Params = PARAMS) -> HybridFHEModel:
    """The model compiled for training, in mode disable."""
    hybrid = HybridFHEModel(model, linear_modules(model))
    calibration = torch.arange(1, 25).reshape(2, 12)
    hybrid.compile_model(calibration if sample is None else sample, trainable=True, params=params, device="cpu")
    hybrid.set_fhe_mode("disable")
    return hybrid


@pytest.fixture
def twins(new_model: Callable[[str], Any]) -> Callable[..., Twins]:
    """``twins(adapt, before=...)``: a tiny model with an adapter that ``adapt(model)`` injects before or after wrapping."""

    def make(adapt: Callable[[nn.Module], Any] | None = None, *, name: str = "llama", before: bool = False) -> Twins:
        adapt = adapt or (lambda model: model)
        model = new_model(name)
        float_model = adapt(copy.deepcopy(model))
        if before:
            adapted = adapt(model)
            hybrid = trainable(adapted)
        else:
            hybrid = trainable(model)
            adapted = adapt(hybrid.model)
        adapted.load_state_dict(float_model.state_dict(), strict=False)
        return Twins(hybrid, adapted, float_model)

    return make


@pytest.fixture
def train_server() -> Callable[..., Any]:
    """``with train_server(folder) as connect``: a server of a bundle on the loopback, and what connects to it."""
    from contextlib import contextmanager

    from veil.bundle.header_file import half_digest
    from veil.bundle.server_half import load_server
    from veil.bundle.terms import Terms
    from veil.client.session import OfflineRows
    from veil.kernels.backend import kernels_for
    from veil.server.config import ServerConfig, server_limits
    from veil.server.engine import Engine
    from veil.server.hosted import HostedBundle
    from veil.server.listen import Server
    from veil.server.store import SessionStore

    @contextmanager
    def serve(folder: Any) -> Any:
        store = SessionStore(server_limits())
        engine = Engine.build(load_server(folder / "server"), kernels_for("cpu"))
        config = ServerConfig(port=0, limits=store.limits)
        server = Server({"b": HostedBundle(engine, half_digest(folder / "client"), None)}, store, config)
        try:
            server.start()
            yield (
                lambda address=False: (
                    f"127.0.0.1:{server.port}"
                    if address
                    else HybridFHEModel.connect(
                        f"127.0.0.1:{server.port}",
                        folder / "client",
                        terms=Terms(no_cryptography=True),
                        offline_rows=OfflineRows(tokens=4, prompt_rows=4),
                    )
                )
            )
        finally:
            server.stop(0.5)

    return serve
