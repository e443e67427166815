"""Weights as they were when they were compiled: what changes them later is noticed before the next pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from veil.errors import ModelChanged

_SAMPLE = 8
_REMEDY = "what is compiled has the old ones; put them back, or make a new HybridFHEModel of the changed model"


@dataclass(eq=False)
class _Known:
    layer: str
    owner: nn.Module
    name: str
    tensor: torch.Tensor
    version: int
    place: int
    sample: torch.Tensor
    values: torch.Tensor
    total: int

    @property
    def now(self) -> torch.Tensor | None:
        """What stands in the tensor's place."""
        return self.owner._parameters.get(self.name)

    @property
    def is_the_same(self) -> bool:
        """Whether the tensor is where it was, and nothing was written to it through itself: only then is `sample` there."""
        tensor = self.now
        return tensor is self.tensor and _version(tensor) == self.version and tensor.data_ptr() == self.place


class Fingerprints:
    """Of some modules' parameters: their identity, a few values, and a sum of all bits. ``modules`` are by name."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._known = [
            _known(layer, part, name)
            for layer, module in modules.items()
            for part in module.modules()
            for name, tensor in part._parameters.items()
            if tensor is not None and tensor.is_floating_point() and not tensor.is_meta
        ]

    def check(self, *, values: bool) -> None:
        """`ModelChanged` if a parameter is another, was written to or, with ``values``, shows other values."""
        alike = [known.is_the_same for known in self._known]
        seen = not values or _all_seen([known for known, same in zip(self._known, alike, strict=True) if same])
        for index, (known, same) in enumerate(zip(self._known, alike, strict=True)):
            if same and (seen or torch.equal(known.sample, known.values)):
                continue
            tensor = known.now
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                raise ModelChanged(
                    f"the weights of {known.layer!r} have no values any more (they were moved to 'meta'); load the model "
                    "again, or open its saved bundle, which needs none of them"
                )
            now = _known(known.layer, known.owner, known.name) if isinstance(tensor, torch.Tensor) else None
            if now is None or not _equal(known, now):
                raise ModelChanged(f"the weights of {known.layer!r} changed after compiling; {_REMEDY}")
            self._known[index] = now  # moved to another place, or written with what it had


def _all_seen(known: Sequence[_Known]) -> bool:
    """Whether all samples have the values that were noted: one question a device, as a GPU is waited for."""
    kinds: dict[tuple[torch.device, torch.dtype], list[_Known]] = {}
    for own in known:
        kinds.setdefault((own.sample.device, own.sample.dtype), []).append(own)
    return all(
        torch.equal(torch.cat([own.sample for own in some]), torch.cat([own.values for own in some]))
        for some in kinds.values()
    )


def _known(layer: str, owner: nn.Module, name: str) -> _Known:
    tensor = owner._parameters[name]
    assert tensor is not None
    sample = _sample(tensor.detach())
    return _Known(layer, owner, name, tensor, _version(tensor), tensor.data_ptr(), sample, sample.clone(), _total(tensor))


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """A view of a few values, spread over a tensor."""
    while tensor.ndim > 2:
        tensor = tensor[-1] if len(tensor) else tensor.flatten()
    line = tensor.diagonal() if tensor.ndim == 2 else tensor
    return line[:: max(1, len(line) // _SAMPLE)] if line.ndim else line[None]


def _total(tensor: torch.Tensor) -> int:
    """The sum of the values' bits, which one changed bit changes."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().view(whole).sum(dtype=torch.int64))


def _equal(before: _Known, now: _Known) -> bool:
    """Whether the values are the same; of another type, as far as that type can say."""
    if before.tensor.shape != now.tensor.shape:
        return False
    if before.values.dtype == now.values.dtype:
        return before.total == now.total and torch.equal(before.values.cpu(), now.values.cpu())
    coarse = max(torch.finfo(before.values.dtype).eps, torch.finfo(now.values.dtype).eps)
    return torch.allclose(before.values.cpu().float(), now.values.cpu().float(), rtol=2 * coarse, atol=1e-6)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
