"""From a remote module's call to its output: which group, which slice. One activation goes through here once."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from veil.bundle.manifest import NormFusion
from veil.errors import NotCompiled, StreamChanged
from veil.runtime.evaluators import Evaluator
from veil.runtime.gradient import encrypted_product
from veil.runtime.residual import REMEDY
from veil.runtime.row_router import FusedAnswer, LayerPlace, PendingParts, RowRouter, columns
from veil.runtime.sighting import Sighting

Tensor = torch.Tensor


class Router(RowRouter):
    """Evaluates groups for their layers, where the model is. The layers that read the same tensor share one evaluation."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The output [..., out] of a remote linear layer for its input [..., in], of the input's float dtype."""
        place = self._places[name]
        group, shape = place.info, x.shape
        with self._lock:
            if self.last_row_only and len(shape) == 3 and self._several(shape[1]) and group.layers[-1].last_row:
                flat = self._output(place, x, self._needed)
            elif group.fusion is None:
                flat = self._output(place, x, self._whole)
            elif place.number == 0:
                flat = self._add(name, group.fusion, x)
            else:
                flat = self._read(name, group.fusion, x)
            if flat.ndim != len(shape):
                flat = flat.reshape(*shape[:-1], flat.shape[-1])
            return _beside(flat, x)

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        """The output [..., out] of a remote embedding for token ids [...], as the product with one-hot rows."""
        place = self._places[name]
        with self._lock:
            flat = self._output(place, ids, self._looked_up)
            return _beside(flat.reshape(*ids.shape, flat.shape[-1]), ids)

    def _output(self, place: LayerPlace, source: Tensor, evaluate: Callable[[int, Tensor], Tensor]) -> Tensor:
        """A layer's outputs [R, out] for a tensor: of an evaluation that waits for it, or of a new one."""
        group, number = place.group, place.number
        if len(place.parts) == 1:
            return evaluate(group, source)
        pending = self._pending.get(group)
        if (
            pending is None
            or pending.parts[number] is None
            or not pending.source.holds(source)
            or pending.trains != self._trains(group, source)
        ):
            sighting, outputs = Sighting(source), evaluate(group, source)
            parts: list[Tensor | None] = [columns(outputs, part) for part in place.parts]
            pending = self._pending[group] = PendingParts(sighting, outputs.requires_grad, parts, len(parts))
        return self._claimed(group, number, pending)

    def _whole(self, group: int, x: Tensor) -> Tensor:
        """A group's outputs for every row of x [..., width]."""
        return self._evaluate(group, _rows(x))

    def _looked_up(self, group: int, ids: Tensor) -> Tensor:
        """An embedding's outputs for token ids [...]."""
        return self._evaluate(group, _one_hot(ids, self.manifest.groups[group].width))

    def _add(self, name: str, fusion: NormFusion, x: Tensor) -> Tensor:
        """The output of the layer that adds to the stream; what reads the stream next is answered by the same trip."""
        group, part = self.manifest.by_layer[name]
        stream = self.stream
        assert stream is not None
        before = stream.before(fusion, x)
        outputs = self._evaluate(group, torch.cat([_rows(before), _rows(x)], dim=1))
        added = columns(outputs, part)
        self._answers[group] = FusedAnswer(outputs, before, added.to(x.dtype))
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
        return columns(answer.behind, part)

    def _needed(self, group: int, x: Tensor) -> Tensor:
        """A group's outputs for sequences x [B, S, width], flat, with zeros where nothing reads them: rows but the last ones
        have the outputs of layers that matter for every row.
        """
        info = self.manifest.groups[group]
        outputs = x.new_zeros((*x.shape[:2], info.outputs), dtype=torch.float32)
        if info.prompt_rows:
            first = self._evaluate(group, _rows(x[:, :-1]), info.prompt_rows)
            outputs[:, :-1, : first.shape[1]] = first.view(x.shape[0], -1, first.shape[1])
        outputs[:, -1] = self._evaluate(group, _rows(x[:, -1]))
        return outputs.view(-1, info.outputs)

    def _several(self, rows: int) -> bool:
        """Whether sequences of so many rows are sent with several rows each, of zeros if they have no others."""
        return rows > 1 or (self.course is not None and self.course.fills)

    def _evaluate(self, group: int, x: Tensor, slots: int | None = None) -> Tensor:
        """A group's outputs [R, outputs] for its rows x [R, width]; those of the first ``slots`` for rows of a prompt."""
        if self.rehearsed is not None:
            self.rehearsed.append((group, len(x), slots))
            return self._nothing(group, x, slots)
        if self.evaluator is None:
            raise NotCompiled("call set_fhe_mode first")
        course = self.course
        self._ask_whether_to_go_on()
        rows = x.shape[0] if course is None else course.rows(group, x.shape[0], slots)
        if not rows:
            if course is not None:
                course.answered(group)
            return x.new_empty((0, self._width(group, slots)))
        trains = self._trains(group, x)
        ask = partial(self._ask, evaluator=self.evaluator)  # the way back is in the mode of the pass
        asks_back = trains and group in self.manifest.back
        number = self._noted(group, rows, asks_back, ask)
        if trains:
            back: Callable[[Tensor], Tensor]
            if not asks_back and self.tied is not None:
                back = self.tied.back
            elif number is not None and self.way is not None:
                back = partial(self.way.ask, number)
            else:
                back = partial(ask, self.manifest.back[group])
            return encrypted_product(x, partial(ask, group, slots=slots, rows=rows), back)
        return self._ask(group, x, slots, rows)

    def _nothing(self, group: int, x: Tensor, slots: int | None) -> Tensor:
        """Zeros as a rehearsal's outputs; gradients come back as zeros, if any do."""
        shape = (len(x), self._width(group, slots))
        if not self._trains(group, x):
            return x.new_zeros(shape)
        return encrypted_product(x, lambda own: own.new_zeros(shape), lambda gradient: torch.zeros_like(x))

    def _width(self, group: int, slots: int | None) -> int:
        """How many outputs a group's first ``slots`` are, or all of them."""
        info = self.manifest.groups[group]
        return info.outputs if slots is None else slots // info.words

    def _noted(self, group: int, rows: int, trains: bool, send: Callable[[int, Tensor], Tensor]) -> int | None:
        """Note a call for the way back, where there is a planned one; its number."""
        course, way = self.course, self.way
        if way is None or course is None or course.is_open(group):
            return None
        return way.note(course, group, rows, trains, send)

    def _trains(self, group: int, x: Tensor) -> bool:
        """Whether a gradient may come back through the group to ``x``."""
        here = self.tied is not None and self.tied.group == group
        return x.requires_grad and torch.is_grad_enabled() and (here or group in self.manifest.back)

    def _ask(
        self, group: int, x: Tensor, slots: int | None = None, rows: int = 0, *, evaluator: Evaluator | None = None
    ) -> Tensor:
        """The outputs for x [R, width], sent as ``rows`` rows if these are more."""
        own = x.shape[0]
        if rows > own:
            outputs = self._send(group, torch.cat([x, x.new_zeros(rows - own, x.shape[1])]), slots, evaluator)[:own]
        else:
            outputs = self._send(group, x, slots, evaluator)
        if self.candidates is not None and self.candidates.group == group:
            outputs = self.candidates.refined(x, outputs)
        if self.observer is not None:
            self.observer(group, x, outputs)
        return outputs

    def _send(self, group: int, x: Tensor, slots: int | None, evaluator: Evaluator | None = None) -> Tensor:
        evaluator = evaluator or self.evaluator
        assert evaluator is not None
        return self._kernels.to_torch(self._sent(group, self._kernels.from_torch(x), slots, evaluator))

    def finish(self, device: torch.device) -> None:
        """Ask what is still due of a pass that ends early, with rows of zeros, no faster than passes did lately."""
        course = self.course
        if course is None or course.broken:
            return
        self.way = None
        for (group, rows, slots), gap_s in course.left:
            start_s = time.perf_counter()
            x = torch.zeros(rows, self.manifest.groups[group].width, device=device)
            time.sleep(max(0.0, gap_s - (time.perf_counter() - start_s)))
            if rows:
                self._send(group, x, slots)
            else:
                course.answered(group)


def _beside(outputs: Tensor, x: Tensor) -> Tensor:
    """The outputs where x is."""
    return outputs if outputs.is_cpu and x.is_cpu else outputs.to(x.device)


def _rows(x: Tensor) -> Tensor:
    """Rows [R, width] float32 of x [..., width], one behind the other."""
    if x.dtype is not torch.float32:
        x = x.to(torch.float32)
    if x.is_neg():  # a view that says it is negated: NumPy does not know of that
        x = x.resolve_neg()
    return x.reshape(-1, x.shape[-1]).contiguous()


def _one_hot(ids: Tensor, width: int) -> Tensor:
    flat = ids.detach().reshape(-1)
    if flat.numel() and not bool(((flat >= 0) & (flat < width)).all()):
        raise IndexError(f"a token id is outside the embedding's {width} rows")
    rows = torch.zeros((flat.numel(), width), dtype=torch.float32, device=flat.device)
    rows[torch.arange(flat.numel(), device=flat.device), flat] = 1.0
    return rows
