"""From a remote module's call to its output: which group, which slice. One activation goes through here once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from veil.bundle.constants import GroupConstants
from veil.bundle.manifest import Manifest, NormFusion
from veil.errors import NotCompiled, StreamChanged
from veil.kernels.interface import Kernels
from veil.runtime.evaluators import Evaluator
from veil.runtime.gradient import encrypted_product
from veil.runtime.residual import REMEDY, ResidualStream
from veil.runtime.sighting import Sighting

if TYPE_CHECKING:
    from veil.checks.candidates import ExactCandidates

Tensor = torch.Tensor
Observer = Callable[[int, Tensor, Tensor], None]
"""Told of each evaluation: (group, inputs [R, width], outputs [R, rows])."""


@dataclass(eq=False)
class _Pending:
    source: Sighting
    outputs: Tensor
    claimed: set[str]


@dataclass(eq=False)
class _Answer:
    """A fused group's outputs, with the stream that was read and what the first layer added to it.

    ``behind`` are the outputs times ρ plus the shift, for the layers that read ``norm``: the norm of that sum, once seen.
    """

    outputs: Tensor
    before: Tensor
    added: Tensor
    norm: Tensor | None = None
    behind: Tensor | None = None


class Router:
    """Evaluates groups for their layers, where the model is. The layers that read the same tensor share one evaluation."""

    def __init__(
        self,
        manifest: Manifest,
        constants: Sequence[GroupConstants],
        kernels: Kernels,
        stream: ResidualStream | None = None,
    ) -> None:
        self.manifest = manifest
        self.stream = stream
        self.evaluator: Evaluator | None = None
        self.observer: Observer | None = None
        self.cancel_check: Callable[[], None] | None = None
        self.candidates: ExactCandidates | None = None
        self.last_row_only = False
        """Whether of the last layers nothing but the last row of each sequence matters in this pass."""
        self._kernels = kernels
        self._shifts = [None if own.shift is None else kernels.to_torch(kernels.asarray(own.shift)) for own in constants]
        self._pending: dict[int, _Pending] = {}
        self._answers: dict[int, _Answer] = {}
        self._lock = threading.RLock()

    def begin_forward(self) -> None:
        """Forget results that nobody claimed."""
        self._pending.clear()
        self._answers.clear()
        if self.stream is not None:
            self.stream.clear()

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The output [..., out] of a remote linear layer for its input [..., in]."""
        index = self.manifest.by_layer[name][0]
        group = self.manifest.groups[index]
        with self._lock:
            if self.last_row_only and x.ndim == 3 and x.shape[1] > 1 and group.layers[-1].last_row:
                flat = self._output(name, x, lambda: self._needed(index, x))
            elif group.fusion is None:
                flat = self._output(name, x, lambda: self._evaluate(index, _rows(x)))
            elif name == group.layers[0].name:
                flat = self._add(name, group.fusion, x)
            else:
                flat = self._read(name, group.fusion, x)
            return flat.reshape(*x.shape[:-1], flat.shape[-1]).to(x.device)

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        """The output [..., out] of a remote embedding for token ids [...], as the product with one-hot rows."""
        width = self.manifest.groups[self.manifest.by_layer[name][0]].width
        with self._lock:
            group = self.manifest.by_layer[name][0]
            flat = self._output(name, ids, lambda: self._evaluate(group, _one_hot(ids, width)))
            return flat.reshape(*ids.shape, flat.shape[-1]).to(ids.device)

    def _output(self, name: str, source: Tensor, evaluate: Callable[[], Tensor]) -> Tensor:
        group, part = self.manifest.by_layer[name]
        pending = self._pending.get(group)
        if (
            pending is None
            or not pending.source.holds(source)
            or name in pending.claimed
            or pending.outputs.requires_grad != self._trains(group, source)
        ):
            pending = self._pending[group] = _Pending(Sighting(source), evaluate(), set())
        pending.claimed.add(name)
        if len(pending.claimed) == len(self.manifest.groups[group].layers):
            del self._pending[group]
        return _columns(pending.outputs, part)

    def _add(self, name: str, fusion: NormFusion, x: Tensor) -> Tensor:
        """The output of the layer that adds to the stream; what reads the stream next is answered by the same trip."""
        group, part = self.manifest.by_layer[name]
        stream = self.stream
        assert stream is not None
        before = stream.before(fusion, x)
        outputs = self._evaluate(group, torch.cat([_rows(before), _rows(x)], dim=1))
        added = _columns(outputs, part)
        self._answers[group] = _Answer(outputs, before, added.to(x.dtype))
        return added

    def _read(self, name: str, fusion: NormFusion, x: Tensor) -> Tensor:
        """The output of a layer behind the norm, from the answer that came with the layer before it: times ρ."""
        group, part = self.manifest.by_layer[name]
        shift, stream, answer = self._shifts[group], self.stream, self._answers.get(group)
        assert shift is not None
        assert stream is not None
        stream.check_reader(fusion, x)
        if answer is None:
            raise StreamChanged(f"{name} was called before {self.manifest.groups[group].layers[0].name}; {REMEDY}")
        if answer.behind is None or answer.norm is not x:
            factor = stream.factor(fusion, answer.before, answer.added)
            answer.norm, answer.behind = x, answer.outputs * factor.detach() + shift
        return _columns(answer.behind, part)

    def _needed(self, group: int, x: Tensor) -> Tensor:
        """A group's outputs for sequences x [B, S, width], flat, with zeros where nothing reads them: rows but the last ones
        have the outputs of layers that matter for every row.
        """
        info = self.manifest.groups[group]
        outputs = x.new_zeros((*x.shape[:2], info.rows), dtype=torch.float32)
        if info.prompt_rows:
            first = self._evaluate(group, _rows(x[:, :-1]), info.prompt_rows)
            outputs[:, :-1, : info.prompt_rows] = first.view(x.shape[0], -1, info.prompt_rows)
        outputs[:, -1] = self._evaluate(group, _rows(x[:, -1]))
        return outputs.view(-1, info.rows)

    def _evaluate(self, group: int, x: Tensor, slots: int | None = None) -> Tensor:
        """A group's outputs [R, rows] for its rows x [R, width]; the first ``slots`` of them for rows of a prompt."""
        if self.cancel_check is not None:
            self.cancel_check()
        if not len(x):
            return x.new_empty((0, self.manifest.groups[group].rows))
        if self._trains(group, x):
            evaluator, back = self.evaluator, self.manifest.back[group]  # the way back is in the mode of the pass
            return encrypted_product(x, partial(self._ask, evaluator, group), partial(self._ask, evaluator, back))
        return self._ask(self.evaluator, group, x, slots)

    def _trains(self, group: int, x: Tensor) -> bool:
        """Whether a gradient may come back through the group to ``x``."""
        return x.requires_grad and torch.is_grad_enabled() and group in self.manifest.back

    def _ask(self, evaluator: Evaluator | None, group: int, x: Tensor, slots: int | None = None) -> Tensor:
        if evaluator is None:
            raise NotCompiled("call set_fhe_mode first")
        outputs = self._kernels.to_torch(evaluator.evaluate(group, self._kernels.from_torch(x), slots))
        if self.candidates is not None and self.candidates.group == group:
            outputs = self.candidates.refined(x, outputs)
        if self.observer is not None:
            self.observer(group, x, outputs)
        return outputs


def _columns(outputs: Tensor, part: slice) -> Tensor:
    """One layer's share of its group's outputs; a tensor of its own, so that writing to it is seen of it alone."""
    if part.stop - part.start == outputs.shape[1]:
        return outputs
    return outputs[:, part].contiguous()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(torch.float32).contiguous()


def _one_hot(ids: Tensor, width: int) -> Tensor:
    flat = ids.detach().reshape(-1)
    if flat.numel() and not bool(((flat >= 0) & (flat < width)).all()):
        raise IndexError(f"a token id is outside the embedding's {width} rows")
    rows = torch.zeros((flat.numel(), width), dtype=torch.float32, device=flat.device)
    rows[torch.arange(flat.numel(), device=flat.device), flat] = 1.0
    return rows
