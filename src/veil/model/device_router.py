"""`router` for a model on a CUDA device: activations stay there, and so does everything that the client does with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from veil import noise
from veil.client.device_session import Scaling
from veil.errors import NotCompiled, NotFiniteActivation
from veil.kernels import cuda
from veil.model.manifest import Manifest
from veil.model.quantize import row_norms, target_norm
from veil.model.router import GroupConstants
from veil.model.sighting import Sighting
from veil.params import Params

Tensor = torch.Tensor


class DeviceService(Protocol):
    """One way to get ``W·x + bias`` of a group for rows x [R, width]: in clear, simulated, or encrypted."""

    def __call__(self, group: int, x: Tensor) -> Tensor: ...


def scalings(constants: Sequence[GroupConstants]) -> list[Scaling]:
    """The groups' constants on the device."""
    return [Scaling(cuda.asarray(c.scale), cuda.asarray(c.bias), c.bound, c.fixed_norm) for c in constants]


class ClearService:
    """The integer layers in clear (mode ``disable``); with ``simulate`` plus Gaussian noise of the predicted variance."""

    def __init__(
        self,
        params: Params,
        manifest: Manifest,
        weights: Sequence[NDArray[np.int8]],
        scaling: Sequence[Scaling],
        *,
        simulate: bool,
    ) -> None:
        self._params = params
        self._manifest = manifest
        self._host_weights = weights
        self._weights = [cuda.asarray(matrix) for matrix in weights]
        self._scaling = scaling
        self._simulate = simulate
        self._sigmas: dict[int, Tensor] = {}

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """See `DeviceService`; `NotFiniteActivation` for NaN or infinity."""
        scaling = self._scaling[group]
        target = target_norm(self._params, scaling.bound)
        rows = x.to(torch.float32).contiguous()
        tau = shown = cuda.scales(rows, target)
        if not bool(torch.isfinite(tau).all().item()):
            raise NotFiniteActivation(f"NaN or infinity reached {self._manifest.groups[group].name}; generation stops here")
        if scaling.fixed_norm is not None:
            shown = torch.full_like(tau, target / scaling.fixed_norm)
            tau = torch.minimum(torch.where(tau == 0, shown, tau), shown)
        words = torch.round(rows.double() * tau[:, None]).to(torch.int64).to(torch.int32)
        values = cuda.matmul(self._weights[group], words.view(torch.uint32)).view(torch.int32)
        if self._simulate:
            values = (values.to(torch.int64) + self._noise(group, values)).to(torch.int32)
        return cuda.dequantize(values, shown, scaling.scale, scaling.bias)

    def _noise(self, group: int, like: Tensor) -> Tensor:
        if group not in self._sigmas:
            sigma = np.sqrt(noise.result(self._params, row_norms(self._host_weights[group])))
            self._sigmas[group] = cuda.asarray(sigma)
        gaussian = torch.randn(like.shape, dtype=torch.float64, device=like.device)
        return torch.round(gaussian * self._sigmas[group]).to(torch.int64)


@dataclass(eq=False)
class _Pending:
    source: Sighting
    values: Tensor
    claimed: set[str]


class DeviceRouter:
    """Evaluates groups for their layers, on tensors of the device; see `router.Router`.

    There is no folded group, and ``checkpoint`` is called once a forward pass, by who starts it.
    """

    def __init__(self, manifest: Manifest, constants: Sequence[GroupConstants] = ()) -> None:
        self.manifest = manifest
        self._divisors = {i: cuda.asarray(c.divisors) for i, c in enumerate(constants) if c.divisors is not None}
        self.stream = None
        self.checkpoint: Callable[[], None] | None = None
        self.service: DeviceService | None = None
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.RLock()

    def begin_forward(self) -> None:
        """Forget results that nobody claimed."""
        self._pending.clear()

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The output [..., out] of a remote linear layer for its input [..., in]."""
        with self._lock:
            flat = self._output(name, x, lambda: x.detach().reshape(-1, x.shape[-1]))
        return flat.view(*x.shape[:-1], flat.shape[-1])

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        """The output [..., out] of a remote embedding for token ids [...], as the product with one-hot rows."""
        width = self.manifest.groups[self.manifest.by_layer[name][0]].width
        with self._lock:
            flat = self._output(name, ids, lambda: _one_hot(ids, width))
        return flat.view(*ids.shape, flat.shape[-1])

    def _output(self, name: str, source: Tensor, rows: Callable[[], Tensor]) -> Tensor:
        group, part = self.manifest.by_layer[name]
        layers = self.manifest.groups[group].layers
        if len(layers) == 1:
            return self._evaluate(group, rows())
        pending = self._pending.get(group)
        if pending is None or not pending.source.holds(source) or name in pending.claimed:
            pending = self._pending[group] = _Pending(Sighting(source), self._evaluate(group, rows()), set())
        pending.claimed.add(name)
        if len(pending.claimed) == len(layers):
            del self._pending[group]
        return pending.values[:, part].contiguous()

    def _evaluate(self, group: int, x: Tensor) -> Tensor:
        if self.service is None:
            raise NotCompiled("call set_fhe_mode first")
        divisors = self._divisors.get(group)
        return self.service(group, x if divisors is None else x.float() / divisors)


def _one_hot(ids: Tensor, width: int) -> Tensor:
    flat = ids.detach().reshape(-1)
    if flat.numel() and not bool(((flat >= 0) & (flat < width)).all().item()):
        raise IndexError(f"a token id is outside the embedding's {width} rows")
    rows = torch.zeros((flat.numel(), width), dtype=torch.float32, device=flat.device)
    rows[torch.arange(flat.numel(), device=flat.device), flat] = 1.0
    return rows
