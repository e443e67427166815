"""Which norms can be fused away: found by watching one forward pass, not by the names of model families.

A pre-norm block adds a layer's output to the residual stream, and the next layers read the stream through a norm:

    h' = h + W_p·a + b_p        y = W_r·norm(h') + b_r,    norm(x) = ρ(x)·γ⊙(x - mean) + β

A norm is linear up to the scalar ρ of a row, so ``[h, a]`` gives both ``W_p·a`` and ``y/ρ`` in one trip, and the client,
which holds h' by then, multiplies by ρ. A fusion is taken only where the pass shows the first equation to hold exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from veil.bundle.manifest import Group, Manifest, NormFusion
from veil.runtime.layers import Observer, RemoteLayer
from veil.runtime.norms import Norm, is_norm, norm_of
from veil.runtime.sighting import Sighting

_NORMS_BACK = 6


@dataclass(frozen=True, eq=False)
class FoundFusion:
    """A fusion with what the pass showed: the stream h [T, width] before, the layer's input a [T, in], ρ [T, 1] after."""

    fusion: NormFusion
    producer: str
    readers: tuple[str, ...]
    norm: Norm
    stream: torch.Tensor
    inputs: torch.Tensor
    factor: torch.Tensor


@dataclass(frozen=True, eq=False)
class Fusions:
    """What was found: the fusions in calling order, and a reason for each norm before remote layers that stays."""

    found: tuple[FoundFusion, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Call:
    name: str
    source: Sighting
    result: Sighting
    norm: bool


class StreamWatch:
    """Notes every call of a norm and of a remote layer while it is entered."""

    def __init__(self, model: nn.Module, layers: dict[str, RemoteLayer]) -> None:
        self._model = model
        self._layers = layers
        self._calls: list[_Call] = []
        self._hooks: list[RemovableHandle] = []
        self._watched: list[tuple[RemoteLayer, Observer]] = []

    def __enter__(self) -> StreamWatch:
        watched: dict[str, nn.Module] = dict(self._layers)
        inside = {id(part) for layer in self._layers.values() for part in layer.modules()}
        watched |= {n: m for n, m in self._model.named_modules() if is_norm(m) and id(m) not in inside}
        for name, module in watched.items():
            if isinstance(module, RemoteLayer):
                self._watched.append((module, self._observer(name)))
                module.observers.append(self._watched[-1][1])
            else:
                self._hooks.append(module.register_forward_hook(self._note(name)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer, observer in self._watched:
            layer.observers.remove(observer)

    def _note(self, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, args: tuple[object, ...], result: object) -> None:
            if args and isinstance(args[0], torch.Tensor) and isinstance(result, torch.Tensor):
                self._calls.append(_Call(name, Sighting(args[0]), Sighting(result), True))

        return hook

    def _observer(self, name: str) -> Observer:
        return lambda x, out: self._calls.append(_Call(name, Sighting(x), Sighting(out), False))

    def fusions(self, manifest: Manifest) -> Fusions:
        """Every fusion that the calls allow, for groups as the manifest has them."""
        found: list[FoundFusion] = []
        reasons: list[str] = []
        entered = False
        for place, call in enumerate(self._calls):
            readers = self._readers(place, manifest) if call.norm else ()
            if not readers:
                continue
            if not entered:  # the first projection: nothing came before it that a trip could be shared with
                entered = True
                continue
            fusion = self._fusion(place, readers, manifest)
            if not isinstance(fusion, str) and any(fusion.producer in other.readers for other in found):
                fusion = f"{fusion.producer} reads a norm and adds to the residual stream at once"
            if isinstance(fusion, str):
                reasons.append(f"{call.name}: {fusion}")
            else:
                found.append(fusion)
        return Fusions(tuple(found), tuple(reasons))

    def _readers(self, place: int, manifest: Manifest) -> tuple[str, ...]:
        """Remote layers of the body that read a norm's output."""
        output = self._calls[place].result
        names = [call.name for call in self._calls[place + 1 :] if not call.norm and call.source.equals(output)]
        return tuple(n for n in dict.fromkeys(names) if manifest.groups[manifest.by_layer[n][0]].segment == "body")

    def _fusion(self, place: int, readers: tuple[str, ...], manifest: Manifest) -> FoundFusion | str:
        call, times = self._calls[place], Counter(call.name for call in self._calls)
        norm = norm_of(self._model.get_submodule(call.name))
        if norm is None:
            return "it is neither an RMSNorm nor a LayerNorm over the whole width"
        stream = _rows(call.source.tensor)
        if not _whole(readers, manifest):
            return f"{readers[0]} does not read it together with the other layers of its group"
        pair = self._sum(place, stream)
        if pair is None:
            return self._why_not(place)
        before, producer = pair
        several = [name for name in (call.name, before.name, producer.name, *readers) if times[name] > 1]
        if several:
            return f"{several[0]} is called more than once in a pass"
        if not _whole((producer.name,), manifest):
            return f"{producer.name} shares its input with other layers"
        return FoundFusion(
            fusion=NormFusion(before.name, call.name, stream.shape[-1]),
            producer=producer.name,
            readers=readers,
            norm=norm,
            stream=_rows(before.source.tensor).float(),
            inputs=_rows(producer.source.tensor).float(),
            factor=norm.factor(stream),
        )

    def _sum(self, place: int, stream: torch.Tensor) -> tuple[_Call, _Call] | None:
        """The norm whose input, and the remote layer whose output, add up to ``stream`` exactly."""
        earlier = self._calls[:place]
        norms = [(i, c) for i, c in enumerate(earlier) if c.norm and _rows(c.source.tensor).shape == stream.shape]
        for index, before in reversed(norms[-_NORMS_BACK:]):
            for producer in reversed(earlier[index:]):
                if producer.norm or _rows(producer.result.tensor).shape != stream.shape:
                    continue
                if torch.equal(_rows(before.source.tensor) + _rows(producer.result.tensor), stream):
                    return before, producer
        return None

    def _why_not(self, place: int) -> str:
        layers = [call for call in self._calls[:place] if not call.norm]
        last = layers[-1] if layers else None
        through = [
            c.name for c in self._calls[:place] if c.norm and last is not None and _same(c.source.tensor, last.result.tensor)
        ]
        if last is not None and through:
            return f"the output of {last.name} passes {through[-1]} before it joins the residual stream"
        return "what it reads is not the residual stream plus the output of one remote layer"


def fuse_groups(manifest: Manifest, fusions: Sequence[FoundFusion]) -> Manifest:
    """The manifest with the readers of each fusion moved into the group of the layer that feeds it."""
    groups: list[Group] = []
    by_producer = {fusion.producer: fusion for fusion in fusions}
    moved = {name for fusion in fusions for name in fusion.readers}
    layers = {layer.name: layer for group in manifest.groups for layer in group.layers}
    for group in manifest.groups:
        fusion = by_producer.get(group.layers[0].name)
        if group.layers[0].name in moved and fusion is None:
            continue
        if fusion is None:
            groups.append(group)
        else:
            readers = tuple(layers[name] for name in fusion.readers)
            groups.append(Group((*group.layers, *readers), group.segment, fusion.fusion))
    made = Manifest(tuple(groups))
    made.check()
    return made


def _whole(names: tuple[str, ...], manifest: Manifest) -> bool:
    """Whether these layers are exactly one group, of a kind that is a matrix."""
    group = manifest.groups[manifest.by_layer[names[0]][0]]
    return [layer.name for layer in group.layers] == list(names) and group.layers[0].kind != "embedding"


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.numel() == y.numel() and torch.equal(x.reshape(-1), y.reshape(-1))
