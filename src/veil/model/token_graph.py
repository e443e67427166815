"""A model's one-row forward pass as one CUDA graph: local layers and encrypted steps, with no Python between them.

What makes it possible is a key-value cache of fixed size (transformers' ``StaticCache``): then every tensor of a decoding
step has the shape and the place that it had before. The pass is recorded when the same shapes come a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from veil.client.device_session import DeviceSession
from veil.kernels import cuda

_log = logging.getLogger("veil")


@dataclass(frozen=True, eq=False)
class _Recorded:
    signature: tuple[Any, ...]
    inputs: dict[str, torch.Tensor]
    kept: dict[str, Any]  # the cache among them: while this lives, no other has its identity
    output: list[Any]
    groups: list[int]
    replay: Callable[[], None]


class TokenGraph:
    """Runs one-row passes of ``forward``; ``session`` is the one whose steps they contain, None for a model in clear."""

    def __init__(self, forward: Callable[..., Any], session: DeviceSession | None) -> None:
        self._forward = forward
        self._session = session
        self._seen: tuple[Any, ...] | None = None
        self._refused: tuple[Any, ...] | None = None
        self._recorded: _Recorded | None = None

    def __call__(self, arguments: dict[str, Any]) -> Any:
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

    def _record(self, signature: tuple[Any, ...], arguments: dict[str, Any]) -> _Recorded | None:
        inputs = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        kept = {name: value for name, value in arguments.items() if name not in inputs}
        output: list[Any] = [None]
        groups: list[int] = []
        expected = [] if self._session is None else self._session.last_pass

        def step() -> None:
            groups.clear()
            if self._session is None:
                output[0] = self._forward(**inputs, **kept)
                return
            with self._session.recording(groups):
                output[0] = self._forward(**inputs, **kept)

        try:
            with torch.no_grad():
                replay = cuda.capture(step, warm=False)
            if groups != expected and not cuda.interpreted():
                raise ValueError("it does not use the same layers each time")
        except Exception as error:  # whatever a model does that a graph cannot hold
            _log.info("the model's pass cannot be one CUDA graph (%s); it runs launch by launch", error)
            self._refused = signature
            return None
        return _Recorded(signature, inputs, kept, output, expected, replay)

    def _replay(self, recorded: _Recorded, arguments: dict[str, Any]) -> Any:
        if self._session is not None and not self._session.arm(recorded.groups):
            return None
        for name, tensor in recorded.inputs.items():
            tensor.copy_(arguments[name])
        with torch.no_grad():
            recorded.replay()
        return _own(recorded.output[0])


def _signature(arguments: dict[str, Any]) -> tuple[Any, ...] | None:
    """What has to be the same for a graph to be used again; None for a pass that no graph can hold."""
    ids = arguments.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.numel() != 1:
        return None
    parts: list[Any] = []
    caches = 0
    for name in sorted(arguments):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            parts.append((name, value.shape, value.dtype, value.device))
        elif value is None or isinstance(value, (bool, int, float, str)):
            parts.append((name, value))
        elif _is_fixed(value):
            parts.append((name, id(value)))
            caches += 1
        else:
            return None
    return tuple(parts) if caches == 1 else None


def _is_fixed(cache: Any) -> bool:
    """Whether every layer of a cache keeps its state in tensors that stay where they are."""
    from transformers.cache_utils import StaticLayer

    layers = getattr(cache, "layers", None)
    return (
        layers is not None
        and len(layers) > 0
        and all(type(layer) is StaticLayer and layer.is_initialized for layer in layers)
    )


def _own(value: Any) -> Any:
    """A copy of an output that the next replay does not write to; the cache in it is no copy."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)(**{name: _own(part) for name, part in value.items()})
    if isinstance(value, (tuple, list)):
        return type(value)(_own(part) for part in value)
    return value
