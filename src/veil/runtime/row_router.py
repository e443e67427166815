"""A pass of one plain row: which group, which slice, with NumPy's arrays alone; what more there is to it is the router's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from veil.bundle.constants import GroupConstants
from veil.bundle.manifest import Group, Manifest, NormFusion
from veil.errors import NotFiniteActivation
from veil.kernels.interface import Array, Kernels
from veil.runtime.evaluators import Evaluator
from veil.runtime.plain_row import one_row
from veil.runtime.plan import Call, Course
from veil.runtime.residual import ResidualStream
from veil.runtime.sighting import Sighting
from veil.runtime.tied_head import TiedHead
from veil.runtime.way_back import Stretch, WayBack

if TYPE_CHECKING:
    from veil.checks.candidates import ExactCandidates

Tensor = torch.Tensor
F32 = NDArray[np.float32]
Observer = Callable[[int, Tensor, Tensor], None]
"""Told of each evaluation: (group, inputs [R, width], outputs [R, outputs])."""


class LayerPlace(NamedTuple):
    """A remote layer's group and which of the group's layers it is; ``whole`` if nothing but the group makes its outputs."""

    group: int
    info: Group
    number: int
    parts: tuple[slice, ...]
    whole: bool
    names: tuple[str, ...]
    """The group's layers, in the order of their outputs."""


@dataclass(eq=False, slots=True)
class PendingParts:
    """Each layer's part of a group's outputs until it is claimed, the input that they are of, and whether they train.

    Those of ``one_row`` are the layers' answers as they are.
    """

    source: Sighting
    trains: bool
    parts: list[Tensor | None]
    left: int
    one_row: bool = False


@dataclass(eq=False)
class FusedAnswer:
    """A fused group's outputs, with the stream that was read and what the first layer added to it.

    ``behind`` are the outputs times ρ plus the shift, for the layers that read ``norm``: the norm of that sum, once seen.
    """

    outputs: Tensor
    before: Tensor
    added: Tensor
    norm: Tensor | None = None
    behind: Tensor | None = None


class RowRouter:
    """What is known of the pass under way, and the shorter way of its calls that are one plain row each.

    A token's step asks two hundred times, between other code that fills the caches: each call of torch saved here, and each
    check that another implies, counts four times what it takes in a loop of its own.
    """

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
            layer.name: LayerPlace(
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
        self._pending: dict[int, PendingParts] = {}
        self._answers: dict[int, FusedAnswer] = {}
        self._lock = threading.RLock()

    def begin_forward(self) -> None:
        """Forget results that nobody claimed."""
        self._pending.clear()
        self._answers.clear()
        if self.stream is not None:
            self.stream.clear()

    def ask_stream(self) -> None:
        """Raise `StreamChanged` if the residual stream was changed so far in the pass under way."""
        if self.stream is not None:
            self.stream.ask()

    def _claimed(self, group: int, number: int, pending: PendingParts) -> Tensor:
        part, pending.parts[number] = pending.parts[number], None
        pending.left -= 1
        if not pending.left:
            del self._pending[group]
        assert part is not None
        return part

    def row(self, name: str, x: Tensor) -> Tensor | None:
        """`Router.linear` of one float32 row x [..., in] on this processor; None where there is more to it, or x is not
        plain.
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
            pending = self._pending[group] = PendingParts(sighting, False, parts, len(parts), True)
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

    def _row_of(self, place: LayerPlace, x: Tensor) -> F32 | None:
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

    def _row_added(self, place: LayerPlace, fusion: NormFusion, x: Tensor) -> Tensor | None:
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
        added = columns(own, place.parts[0])
        self._answers[place.group] = FusedAnswer(own, before, added)
        return added.reshape(*values.shape[:-1], -1)

    def _row_behind(self, place: LayerPlace, fusion: NormFusion, x: Tensor) -> F32 | None:
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


def columns(outputs: Tensor, part: slice) -> Tensor:
    """One layer's share of its group's outputs; a tensor of its own, so that writing to it is seen of it alone."""
    if part.stop - part.start == outputs.shape[1]:
        return outputs
    return outputs[:, part].contiguous()
