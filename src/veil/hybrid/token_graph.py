"""A model's one-row forward pass as one CUDA graph: local layers and encrypted steps, with no Python between them.

What makes it possible is a key-value cache of fixed size (transformers' ``StaticCache``): then every tensor of a decoding
step has the shape and the place that it had before. The pass is recorded when the same shapes come a second time.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from veil.bundle.manifest import NormFusion
from veil.client.session import ClientSession
from veil.errors import one_line
from veil.kernels.interface import Array, Rows
from veil.runtime.router import Router
from veil.server.engine import Claim
from veil.server.local import LocalServer
from veil.wire.messages import Span

_log = logging.getLogger("veil")


@dataclass(frozen=True, eq=False)
class _Recorded:
    signature: tuple[object, ...]
    inputs: dict[str, torch.Tensor]
    kept: dict[str, object]  # the cache among them
    output: list[object]
    groups: list[int]
    fusions: list[NormFusion]
    replay: Callable[[], object]


class _FixedRow:
    """One row's material where a graph reads it, on both sides; `veil.runtime.evaluators.Evaluator` while a pass is
    recorded.
    """

    def __init__(self, session: ClientSession, server: LocalServer) -> None:
        self._session = session
        self._server = server
        kernels, manifest = session.kernels, session.model.manifest
        self._pads = kernels.zeros(1, session.pad_words)
        params = session.model.params
        segments = {name: slots for name, slots in manifest.segments.items() if name != "back"}
        self._mu = {name: kernels.zeros(1, slots) for name, slots in segments.items()}
        self._h = {name: kernels.zeros(1, params.blocks(slots) * params.w) for name, slots in segments.items()}
        self.groups: list[int] = []
        self.scales: list[tuple[int, Array]] = []

    def evaluate(self, group: int, x: Array, slots: int | None = None) -> Array:
        """One row's step, [1, width] → [1, rows] float32, under the material that `arm` will copy.

        `ValueError` for more rows, or a group twice.
        """
        if len(x) != 1 or group in self.groups or slots is not None:
            raise ValueError("a recorded pass has one row, and each group once")
        session, kernels = self._session, self._session.kernels
        info, scaling = session.model.manifest.groups[group], session.scalings[group]
        column, start = session.pad_column(group), session.model.manifest.starts[group]
        pads = [Rows(self._pads, 0, 1)]
        data, scales, sent = kernels.encrypt_checked(x, scaling, pads, column, info.input_bits)
        (reply,) = self._server.engine.answer([Claim(group, data, [Rows(self._h[info.segment], 0, 1)], info.rows)])
        self.groups.append(group)
        self.scales.append((group, scales))
        shares = [Rows(self._mu[info.segment], 0, 1)]
        if session.checks is not None:
            return session.checks.decrypt(group, sent, reply, scaling, shares, start, info.rows, scales)
        return kernels.decrypt(reply, scaling, shares, start, info.result_bits, scales)

    def arm(self, groups: list[int]) -> bool:
        """Take one row for all these groups, spent on both sides, and put it where the graph reads it; False without one."""
        taken = self._session.take_row(groups)
        if taken is None:
            return False
        name, part = taken
        shares = self._server.claim_row(name, groups, Span(part.batch.number, part.first, 1))
        self._pads.copy_(part.batch.pads[part.first : part.first + 1])
        for segment, own in part.batch.shares.items():
            self._mu[segment].copy_(own[part.first : part.first + 1])
        for segment, own in shares.items():
            self._h[segment].copy_(own.material[own.first : own.first + 1])
        return True

    def close(self) -> None:
        """Forget the row."""
        for held in (self._pads, *self._mu.values(), *self._h.values()):
            held.zero_()


class TokenGraph:
    """Runs one-row passes of ``forward`` with the steps of a session and of the server beside it in them."""

    def __init__(self, forward: Callable[..., object], router: Router, session: ClientSession, server: LocalServer) -> None:
        self._forward = forward
        self._router = router
        self._session = session
        self._row = _FixedRow(session, server)
        self._seen: tuple[object, ...] | None = None
        self._refused: tuple[object, ...] | None = None
        self._told = False
        self._recorded: _Recorded | None = None

    def __call__(self, arguments: dict[str, object]) -> object:
        """The output of a pass with these keyword arguments, or None where it has to run launch by launch."""
        signature = _signature(arguments)
        if signature is None or signature == self._refused:
            return None
        if self._recorded is None or self._recorded.signature != signature:
            if signature != self._seen:
                self._seen, self._recorded = signature, None
                return None
            self._recorded = self._record(signature, arguments)
        return None if self._recorded is None else self._replay(self._recorded, arguments)

    def close(self) -> None:
        """Forget the row that was replayed last, and what was recorded."""
        self._recorded = None
        self._row.close()

    def _record(self, signature: tuple[object, ...], arguments: dict[str, object]) -> _Recorded | None:
        from veil.kernels.cuda.graphs import capture

        inputs = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        kept = {name: value for name, value in arguments.items() if name not in inputs}
        output: list[object] = [None]
        checks = self._session.checks

        def step() -> None:
            self._row.groups, self._row.scales = [], []
            self._router.begin_forward()
            output[0] = self._forward(**inputs, **kept)
            if checks is not None:
                checks.record_test()

        before, self._router.evaluator = self._router.evaluator, self._row
        try:
            with torch.no_grad():
                replay = capture(step, warm=False)  # a step that ran would move the cache on
        except Exception as error:  # whatever a model does that a graph cannot hold
            tell = _log.info if self._told else _log.warning
            tell("a token takes several times as long: the model's pass cannot be one CUDA graph (%s)", one_line(error))
            self._told, self._refused = True, signature
            return None
        finally:
            self._router.evaluator = before
            fusions = [] if self._router.stream is None else self._router.stream.take_unasked()
            if checks is not None:
                checks.forget_row()
        return _Recorded(signature, inputs, kept, output, list(self._row.groups), fusions, replay)

    def _replay(self, recorded: _Recorded, arguments: dict[str, object]) -> object:
        checks = self._session.checks
        if checks is not None:
            checks.before_replay()
        if not self._row.arm(recorded.groups):
            return None
        for name, tensor in recorded.inputs.items():
            value = arguments[name]
            assert isinstance(value, torch.Tensor)
            tensor.copy_(value)
        with torch.no_grad():
            recorded.replay()
        if checks is not None:
            checks.replayed(recorded.groups)
        for group, scales in self._row.scales:
            self._session.check(group, scales)
        if self._router.stream is not None:
            self._router.stream.unasked = list(recorded.fusions)
        return _own(recorded.output[0])


def _signature(arguments: dict[str, object]) -> tuple[object, ...] | None:
    """What has to be the same for a graph to be used again; None for a pass that no graph can hold."""
    ids = arguments.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.numel() != 1:
        return None
    parts: list[tuple[object, ...]] = []
    caches = 0
    for name in sorted(arguments):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            parts.append((name, value.shape, value.dtype, value.device))
        elif value is None or isinstance(value, (bool, int, float, str)):
            parts.append((name, value))
        elif _is_fixed(value):
            parts.append((name, weakref.ref(value)))  # its identity may be another's once it is gone
            caches += 1
        else:
            return None
    return tuple(parts) if caches == 1 else None


def _is_fixed(cache: object) -> bool:
    """Whether every layer of a cache keeps its state in tensors that stay where they are."""
    from transformers.cache_utils import StaticLayer

    layers = getattr(cache, "layers", None)
    return (
        layers is not None
        and len(layers) > 0
        and all(type(layer) is StaticLayer and layer.is_initialized for layer in layers)
    )


def _own(value: object) -> object:
    """A copy of an output that the next replay does not write to; the cache in it is no copy."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)(**{name: _own(part) for name, part in value.items()})
    if isinstance(value, (tuple, list)):
        return type(value)(_own(part) for part in value)
    return value
