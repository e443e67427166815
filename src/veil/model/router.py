"""From a remote module's call to its output: which group, which mode, which slice. One activation goes through here once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from veil import noise
from veil.errors import NotCompiled, NotFiniteActivation, StreamChanged
from veil.model.manifest import Fold, Manifest
from veil.model.quantize import clear_product, row_norms, target_norm
from veil.model.residual import REMEDY, ResidualStream
from veil.model.sighting import Sighting
from veil.params import Params

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class FoldConstants:
    """What the client keeps of a folded group besides: divisors of the inputs [width], and what is added after ρ [rows]."""

    smooth: F32
    shift: F32


@dataclass(frozen=True, eq=False)
class GroupConstants:
    """What the client keeps of one group: scales c and biases [rows], and the norm that its inputs are scaled to.

    ``fixed_norm`` is the calibrated ‖x‖ when quantization is not dynamic: one τ for every row, longer rows clipped to it.
    """

    scale: F32
    bias: F32
    bound: float
    fixed_norm: float | None = None
    fold: FoldConstants | None = None
    divisors: F32 | None = None
    """What the inputs [width] are divided by; None for nothing, and in a folded group, which has its own."""


class Service(Protocol):
    """One way to get ``W_q·round(τ·x)`` of a group: in clear, simulated, or encrypted."""

    def __call__(self, group: int, x: F32, tau: F64) -> I32: ...


def clear_service(weights: tuple[I8, ...], kernels: ModuleType) -> Service:
    """The exact integer product, no encryption (mode ``disable``)."""
    return lambda group, x, tau: clear_product(weights[group], x, tau, kernels)


def simulated_service(params: Params, weights: tuple[I8, ...], kernels: ModuleType, rng: np.random.Generator) -> Service:
    """The exact product plus Gaussian noise of the predicted variance (mode ``simulate``)."""
    sigmas: dict[int, F64] = {}

    def service(group: int, x: F32, tau: F64) -> I32:
        if group not in sigmas:
            sigmas[group] = np.sqrt(noise.result(params, row_norms(weights[group])))
        exact = clear_product(weights[group], x, tau, kernels)
        error = rng.standard_normal(exact.shape) * sigmas[group]
        return (exact + np.rint(error).astype(np.int64)).astype(np.int32)

    return service


@dataclass(eq=False)
class _Pending:
    source: Sighting
    outputs: F32
    claimed: set[str]


@dataclass(eq=False)
class _Answer:
    """A folded group's outputs, with the stream that was read and what the first layer added to it.

    ``behind`` are the outputs times ρ plus the shift, for the layers that read ``norm``: the norm of that sum, once seen.
    """

    outputs: F32
    before: torch.Tensor
    added: torch.Tensor
    norm: torch.Tensor | None = None
    behind: F32 | None = None


class Router:
    """Evaluates groups for their layers. The layers of a group that read the same tensor share one evaluation."""

    def __init__(
        self,
        params: Params,
        manifest: Manifest,
        constants: tuple[GroupConstants, ...],
        kernels: ModuleType,
        stream: ResidualStream | None = None,
    ) -> None:
        self.manifest = manifest
        self.constants = constants
        self.stream = stream
        self._params = params
        self._kernels = kernels
        self._pending: dict[int, _Pending] = {}
        self._answers: dict[int, _Answer] = {}
        self._lock = threading.RLock()
        self.service: Service | None = None
        self.observer: Callable[[int, F32, F64, I32], None] | None = None
        self.checkpoint: Callable[[], None] | None = None

    def begin_forward(self) -> None:
        """Forget results that nobody claimed."""
        self._pending.clear()
        self._answers.clear()
        if self.stream is not None:
            self.stream.clear()

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The output [..., out] of a remote linear layer for its input [..., in]."""
        group = self.manifest.groups[self.manifest.by_layer[name][0]]
        with self._lock:
            if group.fold is None:
                flat = self._output(name, x, lambda: _rows(x))
            elif name == group.layers[0].name:
                flat = self._add(name, group.fold, x)
            else:
                flat = self._read(name, group.fold, x)
            return flat.reshape(*x.shape[:-1], flat.shape[-1]).to(x.device)

    def embedding(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """The output [..., out] of a remote embedding for token ids [...], as the product with one-hot rows."""
        width = self.manifest.groups[self.manifest.by_layer[name][0]].width
        with self._lock:
            flat = self._output(name, ids, lambda: _one_hot(ids, width))
            return flat.reshape(*ids.shape, flat.shape[-1]).to(ids.device)

    def _output(self, name: str, source: torch.Tensor, rows: Callable[[], F32]) -> torch.Tensor:
        group, part = self.manifest.by_layer[name]
        pending = self._pending.get(group)
        if pending is None or not pending.source.holds(source) or name in pending.claimed:
            pending = self._pending[group] = _Pending(Sighting(source), self._evaluate(group, rows()), set())
        pending.claimed.add(name)
        if len(pending.claimed) == len(self.manifest.groups[group].layers):
            del self._pending[group]
        return _columns(pending.outputs, part)

    def _add(self, name: str, fold: Fold, x: torch.Tensor) -> torch.Tensor:
        """The output of the layer that adds to the stream; what reads the stream next is answered by the same trip."""
        group, part = self.manifest.by_layer[name]
        constants, stream = self.constants[group].fold, self.stream
        assert constants is not None
        assert stream is not None
        before = stream.before(fold, x)
        rows: F32 = np.divide(np.concatenate([_rows(before), _rows(x)], axis=1), constants.smooth, dtype=np.float32)
        outputs = self._evaluate(group, rows)
        added = _columns(outputs, part)
        self._answers[group] = _Answer(outputs, before, added.to(x.dtype))
        return added

    def _read(self, name: str, fold: Fold, x: torch.Tensor) -> torch.Tensor:
        """The output of a layer behind the norm, from the answer that came with the layer before it: times ρ."""
        group, part = self.manifest.by_layer[name]
        constants, stream, answer = self.constants[group].fold, self.stream, self._answers.get(group)
        assert constants is not None
        assert stream is not None
        stream.check_reader(fold, x)
        if answer is None:
            raise StreamChanged(f"{name} was called before {self.manifest.groups[group].layers[0].name}; {REMEDY}")
        if answer.behind is None or answer.norm is not x:
            factor = stream.factor(fold, answer.before, answer.added)
            answer.norm, answer.behind = x, answer.outputs * factor.detach().numpy() + constants.shift
        return _columns(answer.behind, part)

    def _evaluate(self, group: int, x: F32) -> F32:
        """A group's outputs [T, rows] for its rows x [T, width]."""
        if self.service is None:
            raise NotCompiled("call set_fhe_mode first")
        if self.checkpoint is not None:
            self.checkpoint()
        constants = self.constants[group]
        if constants.divisors is not None:
            x = np.divide(x, constants.divisors, dtype=np.float32)
        target = target_norm(self._params, constants.bound)
        tau = self._kernels.scales(x, target)
        if not np.isfinite(tau).all():
            name = self.manifest.groups[group].name
            raise NotFiniteActivation(f"NaN or infinity reached {name}; generation stops here and nothing was sent")
        shown = tau
        if constants.fixed_norm is not None:
            shown = np.full(len(x), target / constants.fixed_norm)
            tau = np.minimum(np.where(tau == 0, shown, tau), shown)
        values = self.service(group, x, tau)
        if self.observer is not None:
            self.observer(group, x, tau, values)
        outputs: F32 = self._kernels.dequantize(values, shown, constants.scale, constants.bias)
        return outputs


def _columns(outputs: F32, part: slice) -> torch.Tensor:
    """One layer's share of its group's outputs; a tensor of its own, so that writing to it is seen of it alone."""
    return torch.from_numpy(np.ascontiguousarray(outputs[:, part]))


def _rows(x: torch.Tensor) -> F32:
    flat = x.detach().reshape(-1, x.shape[-1]).to(device="cpu", dtype=torch.float32).contiguous()
    rows: F32 = flat.numpy()
    return rows


def _one_hot(ids: torch.Tensor, width: int) -> F32:
    flat = ids.detach().reshape(-1).to("cpu").numpy()
    if flat.size and not (flat.min() >= 0 and flat.max() < width):
        raise IndexError(f"a token id is outside the embedding's {width} rows")
    rows = np.zeros((flat.size, width), dtype=np.float32)
    rows[np.arange(flat.size), flat] = 1.0
    return rows
