"""From a remote module's call to its output: which group, which slice. One activation goes through here once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from veil.bundle.constants import GroupConstants
from veil.bundle.manifest import Group, Manifest, NormFusion
from veil.errors import NotCompiled, NotFiniteActivation, StreamChanged
from veil.kernels.interface import Array, Kernels
from veil.runtime.evaluators import Evaluator
from veil.runtime.gradient import encrypted_product
from veil.runtime.plain_row import one_row
from veil.runtime.plan import Call, Course
from veil.runtime.residual import REMEDY, ResidualStream
from veil.runtime.sighting import Sighting
from veil.runtime.tied_head import TiedHead
from veil.runtime.way_back import Stretch, WayBack

if TYPE_CHECKING:
    from veil.checks.candidates import ExactCandidates

Tensor = torch.Tensor
F32 = NDArray[np.float32]
Observer = Callable[[int, Tensor, Tensor], None]
"""Told of each evaluation: (group, inputs [R, width], outputs [R, outputs])."""


class _Place(NamedTuple):
    """A remote layer's group and which of the group's layers it is; ``whole`` if nothing but the group makes its outputs."""

    group: int
    info: Group
    number: int
    parts: tuple[slice, ...]
    whole: bool
    names: tuple[str, ...]
    """The group's layers, in the order of their outputs."""


@dataclass(eq=False, slots=True)
class _Pending:
    """Each layer's part of a group's outputs until it is claimed, the input that they are of, and whether they train.

    Those of ``one_row`` are the layers' answers as they are.
    """

    source: Sighting
    trains: bool
    parts: list[Tensor | None]
    left: int
    one_row: bool = False


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
        tied: TiedHead | None = None,
    ) -> None:
        self.manifest = manifest
        self.stream = stream
        self.tied = tied
        self.evaluator: Evaluator | None = None
        self.observer: Observer | None = None
        self.cancel_check: Callable[[], None] | None = None
        self.candidates: ExactCandidates | None = None
        self.course: Course | Stretch | None = None
        """What the pass under way may ask, in order; None where nothing is sent."""
        self.way: WayBack | None = None
        """Where calls are noted whose gradients may be asked for; None where none can come, or nothing is sent."""
        self.rehearsed: list[Call] | None = None
        """Where calls are written down, and answered with zeros, while a pass is rehearsed."""
        self.goes_on = False
        """Whether a pass that the cancel check ended goes on to its end, with rows of zeros."""
        self.last_row_only = False
        """Whether of the last layers nothing but the last row of each sequence matters in this pass."""
        self._kernels = kernels
        self.on_cpu = kernels.name == "cpu"
        self._places = {
            layer.name: _Place(
                index,
                group,
                number,
                tuple(manifest.by_layer[own.name][1] for own in group.layers),
                group.fusion is None and layer.kind != "embedding",
                tuple(own.name for own in group.layers),
            )
            for index, group in enumerate(manifest.forward)
            for number, layer in enumerate(group.layers)
        }
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

    def _output(self, place: _Place, source: Tensor, evaluate: Callable[[int, Tensor], Tensor]) -> Tensor:
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
            parts: list[Tensor | None] = [_columns(outputs, part) for part in place.parts]
            pending = self._pending[group] = _Pending(sighting, outputs.requires_grad, parts, len(parts))
        return self._claimed(group, number, pending)

    def _claimed(self, group: int, number: int, pending: _Pending) -> Tensor:
        part, pending.parts[number] = pending.parts[number], None
        pending.left -= 1
        if not pending.left:
            del self._pending[group]
        assert part is not None
        return part

    def row(self, name: str, x: Tensor) -> Tensor | None:
        """`linear` of one float32 row x [..., in] on this processor; None where there is more to it, or x is not plain.

        A token's step asks two hundred times, between other code that fills the caches: each call of torch saved here, and
        each check that another implies, counts four times what it takes in a loop of its own.
        """
        place = self._places[name]
        group, number = place.group, place.number
        with self._lock:
            if place.info.fusion is not None:
                return self._row_added(place, place.info.fusion, x) if number == 0 else None
            pending = self._pending.get(group)
            if (
                pending is not None
                and pending.one_row
                and pending.parts[number] is not None
                and pending.source.holds(x)
                and not x.requires_grad
            ):
                return self._claimed(group, number, pending)
            sighting = None if len(place.parts) == 1 else Sighting(x)
            outputs = self._row_of(place, x)
            if outputs is None:
                return None
            if sighting is None:
                return torch.from_numpy(outputs)
            parts: list[Tensor | None] = [torch.from_numpy(outputs[..., part]) for part in place.parts]
            pending = self._pending[group] = _Pending(sighting, False, parts, len(parts), True)
            return self._claimed(group, number, pending)

    def row_together(self, names: tuple[str, ...], x: Tensor) -> F32 | None:
        """`row` of several layers at once, one behind the other [..., outputs]: of all layers of a group, in its order.

        Of a fused group, of all those behind the norm. None for others, and where `row` would say None.
        """
        place = self._places[names[0]]
        fusion = place.info.fusion
        if names != place.names[fusion is not None :]:
            return None
        with self._lock:
            return self._row_of(place, x) if fusion is None else self._row_behind(place, fusion, x)

    def _row_of(self, place: _Place, x: Tensor) -> F32 | None:
        """A group's outputs [..., outputs] for one row that is plain, else None."""
        candidates, group = self.candidates, place.group
        likely = candidates if candidates is not None and candidates.group == group else None
        if not place.whole or not self._takes_rows() or (likely is not None and not likely.at_hand):
            return None
        values = one_row(x)
        if values is None:
            return None
        shape = values.shape
        if shape[-1] != place.info.width:
            return None
        inputs = np.ascontiguousarray(values).reshape(1, -1)
        outputs = self._row_sent(group, inputs)
        if likely is not None:
            likely.refine_row(inputs[0], outputs[0])
        whole: F32 = outputs.reshape((*shape[:-1], -1))
        return whole

    def _row_added(self, place: _Place, fusion: NormFusion, x: Tensor) -> Tensor | None:
        """`_add` for one row that is plain, beside a stream that is, else None."""
        stream, candidates = self.stream, self.candidates
        if stream is None or not self._takes_rows() or (candidates is not None and candidates.group == place.group):
            return None
        values = one_row(x)
        if values is None or values.size + fusion.width != place.info.width:
            return None
        before = stream.before(fusion, x)
        seen = one_row(before)
        if seen is None:
            return None
        outputs = self._row_sent(place.group, np.concatenate((seen.reshape(1, -1), values.reshape(1, -1)), axis=1))
        own = torch.from_numpy(outputs)
        added = _columns(own, place.parts[0])
        self._answers[place.group] = _Answer(own, before, added)
        return added.reshape(*values.shape[:-1], -1)

    def _row_behind(self, place: _Place, fusion: NormFusion, x: Tensor) -> F32 | None:
        """`_read` of all layers behind the norm for one row that is plain, else None."""
        stream, shift, answer = self.stream, self._shifts[place.group], self._answers.get(place.group)
        if stream is None or shift is None or answer is None or not self._takes_rows():
            return None
        values, outputs = one_row(x), one_row(answer.outputs)
        if values is None or outputs is None:
            return None
        stream.check_reader(fusion, x)
        factor = stream.row_factor(fusion, answer.before, answer.added)
        if factor is None:
            return None
        behind = outputs[0, place.parts[1].start :] * factor
        behind += shift.numpy()[place.parts[1].start :]
        return behind.reshape((*values.shape[:-1], -1))

    def _takes_rows(self) -> bool:
        """Whether a plain row is all that there is to a call now."""
        course = self.course
        return (
            self.on_cpu
            and self.evaluator is not None
            and self.observer is None
            and self.rehearsed is None
            and self.way is None
            and not (course is not None and course.fills)
        )

    def _row_sent(self, group: int, inputs: F32) -> F32:
        """A group's outputs [1, outputs] for one row [1, width], as a pass sends it."""
        evaluator = self.evaluator
        assert evaluator is not None
        self._ask_whether_to_go_on()
        if self.course is not None:
            self.course.rows(group, 1, None)
        outputs: F32 = self._sent(group, inputs, None, evaluator)
        return outputs

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

    def _ask_whether_to_go_on(self) -> None:
        """Call the cancel check, if there is one; what it raises ends the pass."""
        if self.cancel_check is None:
            return
        try:
            self.cancel_check()
        except BaseException:
            if self.course is not None and not self.goes_on:
                self.course.broken = True
            raise

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

    def _sent(self, group: int, x: Array, slots: int | None, evaluator: Evaluator) -> Array:
        """The answer [R, outputs] to rows x [R, width], after which the next call of the plan is due."""
        course = self.course
        try:
            outputs = evaluator.evaluate(group, x, slots)
        except BaseException as error:
            if course is not None and not isinstance(error, NotFiniteActivation):
                course.broken = True
            raise
        info = self.manifest.groups[group]
        if course is not None and info.transposed is None:
            course.answered(group)
        return info.whole(outputs)

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


def _columns(outputs: Tensor, part: slice) -> Tensor:
    """One layer's share of its group's outputs; a tensor of its own, so that writing to it is seen of it alone."""
    if part.stop - part.start == outputs.shape[1]:
        return outputs
    return outputs[:, part].contiguous()


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
