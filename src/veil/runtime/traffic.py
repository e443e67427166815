"""Every pass by its plan, and padded where lengths are hidden: what the server is asked then follows from steps only."""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from veil.errors import ModelChanged, RemoteWeightError, UnevenTraffic, one_line
from veil.runtime.padding import Padding
from veil.runtime.plan import Call, Course, Plan, Shape
from veil.runtime.rehearsal import CACHES, Arguments, bound
from veil.runtime.router import Router
from veil.runtime.way_back import Stretch, WayBack, Ways

Forward = Callable[..., object]
_Key = tuple[object, ...]


@dataclass(eq=False)
class Generation:
    """One answer on its way: its passes, and the last one's arguments; whether the server cannot be asked any more."""

    passes: int = 0
    broken: bool = False
    last_answer: float | None = None
    forward: Forward | None = None
    arguments: Arguments | None = None


class Traffic:
    """Runs forward passes of one model through its router, each by a plan that was rehearsed with zeros.

    ``open_layers`` are those that may be asked for some rows only, by the user's consent; ``pictured`` are tokens in whose
    places pictures go; ``running`` gives the model's buffers that a pass in training moves on, and a rehearsal must not.
    ``padding`` may be set between generations. One pass at a time.
    """

    def __init__(
        self,
        router: Router,
        open_layers: frozenset[str] = frozenset(),
        pictured: frozenset[int] = frozenset(),
        running: Callable[[], list[torch.Tensor]] = list,
    ) -> None:
        self._pictured = pictured
        self._running_buffers = running
        self._ways = Ways()
        self.padding: Padding | None = None
        self.stopping = threading.Event()
        """Set by who ends the session: answers are not padded to their end any more."""
        self._router = router
        groups = router.manifest.groups
        self._open = frozenset(i for i, g in enumerate(groups) if all(layer.name in open_layers for layer in g.layers))
        self._plans: dict[_Key, Plan | None] = {}
        self._signatures: dict[str, inspect.Signature] = {}
        self._running = threading.local()
        self._inside = False
        self._with_gradients = False
        """Whether a rehearsal is one of a pass in training, so that hooks on gradients find some."""

    @property
    def inside(self) -> bool:
        """Whether a pass is under way."""
        return self._inside

    # Generations ------------------------------------------------------------------------------------------------------

    @contextmanager
    def generation(self, most: int | None, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
        """While it is entered, passes are one answer's; then come passes of zeros up to the step, also after an error.

        ``most`` is how many tokens it may have; ``begin`` and ``end`` are called around each pass of zeros.
        """
        if self.padding is None:
            yield
            return
        if self._open:
            raise ValueError("padding hides nothing where experts are revealed; leave out one of the two")
        before = getattr(self._running, "generation", None)
        running = self._running.generation = Generation()
        try:
            yield
        finally:
            self._running.generation = before
            self._pad(running, most, begin, end)

    def _pad(self, running: Generation, most: int | None, begin: Callable[[], None], end: Callable[[], None]) -> None:
        arguments, forward = running.arguments, running.forward
        if self.padding is None or arguments is None or forward is None or arguments.shape is None or running.broken:
            return
        shape = Shape(arguments.shape.sequences, 1, arguments.shape.encoder, arguments.shape.kept)
        plan = self._plan("forward", forward, Arguments(arguments.given, arguments.ids, shape, cached=True), shape, True)
        for _ in range(self.padding.tokens(running.passes, most) - running.passes):
            if self.stopping.is_set():
                return
            begin()
            self._router.course = Course(plan, self._padded(shape, True), self._router.manifest, self._open, fills=True)
            try:
                self._router.finish(arguments.device)
            finally:
                self._router.course = None
            end()

    # Passes -----------------------------------------------------------------------------------------------------------

    def run(
        self,
        entry: str,
        forward: Forward,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        training: Hashable | None = None,
    ) -> object:
        """The result of a pass; what it asks is its plan's, also where it fails. `UnevenTraffic` for one that deviates.

        Gradients may come back through a pass of ``training``, which says what trains in it.
        """
        if self._inside:
            return forward(*args, **kwargs)
        if training is not None and torch._C._current_graph_task_id() != -1:
            return self._again(forward, args, kwargs, training)
        self._ways.finish()
        if entry not in self._signatures:
            self._signatures[entry] = inspect.signature(forward)
        arguments = bound(self._signatures[entry], args, kwargs)
        running: Generation | None = getattr(self._running, "generation", None)
        kind = None if training is None else (training, arguments.trains)
        self._with_gradients = kind is not None
        course = self._course(entry, forward, arguments, running, kind)
        if running is not None and entry == "forward":
            running.passes += 1
            running.forward, running.arguments = forward, arguments
        self._inside, self._router.course = True, course
        self._router.goes_on = self.padding is not None
        if kind is not None:
            self._ways.passed(training, course.calls)
            self._router.way = WayBack(self._router.manifest, self._ways)
        try:
            result = forward(*args, **kwargs)
            course.over()
            return result
        except Exception:
            with contextlib.suppress(Exception), torch.no_grad():  # the first error is the one to tell
                self._router.finish(arguments.device)
            raise
        except BaseException:
            course.broken = True
            raise
        finally:
            self._inside, self._router.course, self._router.way = False, None, None
            if running is not None:
                running.broken |= course.broken
                running.last_answer = course.last_answer

    def _again(self, forward: Forward, args: tuple[object, ...], kwargs: Mapping[str, object], training: Hashable) -> object:
        """The result of a part of a pass that is recomputed on the way back: it asks what the pass asked there."""
        router = self._router
        course = Stretch(self._ways.again(training), router.manifest, self._open, self.padding is not None)
        self._inside, router.course, router.way = True, course, WayBack(router.manifest, self._ways)
        try:
            return forward(*args, **kwargs)
        finally:
            self._inside, router.course, router.way = False, None, None

    def forget_training(self) -> None:
        """Let the next pass of each kind say anew which of its calls train."""
        self._ways.forget()
        for plan in self._plans.values():
            if plan is not None:
                plan.trains.clear()

    def _course(
        self,
        entry: str,
        forward: Forward,
        arguments: Arguments,
        running: Generation | None,
        kind: Hashable | None = None,
    ) -> Course:
        shape = arguments.shape
        if shape is None and self.padding is not None:
            raise ValueError("only passes over token sequences can be padded; leave padding out for this model")
        begins = running is not None and running.passes == 0
        single = shape is not None and shape.length == 1 and (shape.encoder > 0 or (arguments.cached and not begins))
        fills = self.padding is not None and (not single or (shape is not None and shape.encoder > 0))
        padded = None if shape is None else self._padded(shape, single)
        plan = self._plan(entry, forward, arguments, padded, arguments.cached, kind)
        if padded is not None and padded.past and not plan.grows:
            padded = replace(padded, past=0)  # so that a plan's calls are the same ones from pass to pass
        since = None if running is None else running.last_answer
        return Course(plan, padded, self._router.manifest, self._open, fills=fills, since=since)

    def _padded(self, shape: Shape, single: bool) -> Shape:
        if self.padding is None:
            return shape
        length = 1 if single else self.padding.rows(shape.length)
        return Shape(shape.sequences, length, self.padding.rows(shape.encoder), shape.kept)

    # Plans ------------------------------------------------------------------------------------------------------------

    def _plan(
        self,
        entry: str,
        forward: Forward,
        arguments: Arguments,
        shape: Shape | None,
        cached: bool,
        kind: Hashable | None = None,
    ) -> Plan:
        key: _Key = (entry, self._router.last_row_only, kind)
        if shape is not None:
            key = (
                *key,
                shape.length == 1,
                min(shape.kept, 2),
                shape.encoder > 0,
                cached,
                arguments.ids,
            )
        plan = self._plans.get(key)
        if shape is not None and key not in self._plans:
            resized = Arguments(arguments.given, arguments.ids, shape, cached)
            plan = self._plans[key] = self._rehearsed(forward, resized, cached)
        if plan is not None and plan.grows and self.padding is not None:
            raise ValueError(
                "this model sends a row for every earlier token with each new one (it computes keys from a smaller cache), "
                "which shows lengths; leave padding out"
            )
        if plan is not None and plan.by_rule:
            return plan
        exact = (*key, shape, arguments.signature if self.padding is None else None)
        plan = self._plans.get(exact)
        if plan is None:
            inputs = arguments.whole(self._pictured) if self.padding is None or shape is None else arguments.sized(shape)[0]
            if self.padding is not None and shape is not None and shape.encoder and cached:
                inputs = inputs | self._state(forward, inputs, arguments.cache_name)
            plan = self._plans[exact] = Plan.of(self._rehearse(forward, inputs), None)
        return plan

    def _rehearsed(self, forward: Forward, arguments: Arguments, cached: bool) -> Plan | None:
        """The plan by rule of a kind of pass; None where a small pass cannot be made up."""
        small = arguments.small()
        if small is None:
            return None
        inputs, shape = small
        try:
            if cached:
                inputs = inputs | self._state(forward, arguments.before(shape), arguments.cache_name)
            return Plan.of(self._rehearse(forward, inputs), shape)
        except (UnevenTraffic, TypeError):
            return None

    def _state(self, forward: Forward, inputs: dict[str, object], name: str) -> dict[str, object]:
        """What a first pass leaves for the next one, by the name that it is asked for."""
        results: list[object] = []
        self._rehearse(forward, inputs | {"use_cache": True}, results)
        result = results[0]
        found = (kept for own, kept in result.items() if own in CACHES) if isinstance(result, Mapping) else iter(())
        return {name: next(found, None), "use_cache": True}

    def _rehearse(self, forward: Forward, inputs: dict[str, object], results: list[object] | None = None) -> list[Call]:
        """The calls of a pass with these arguments, of which nothing is sent. `UnevenTraffic` where it fails."""
        router = self._router
        calls: list[Call] = []
        router.ask_stream()  # of the pass so far, which is forgotten
        router.begin_forward()
        router.rehearsed, self._inside = calls, True
        plain = {name: value for name, value in inputs.items() if not name.partition(".")[2] and not name.isdigit()}
        several = [value for name, value in inputs.items() if name not in plain]
        buffers = [(buffer, buffer.clone()) for buffer in self._running_buffers()]
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        gpus = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
        try:
            with (
                torch.set_grad_enabled(self._with_gradients),
                torch.random.fork_rng(devices=gpus),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # what the pass itself will say
                result = forward(*several, **plain)
                router.ask_stream()
        except (ModelChanged, RemoteWeightError, TypeError):  # the call itself is wrong, whatever its values
            raise
        except Exception as error:
            raise UnevenTraffic(
                f"what this model asks the server cannot be told beforehand: a pass with zeros fails ({one_line(error)}); "
                "use a model whose passes do not depend on the text"
            ) from None
        finally:
            router.rehearsed, self._inside = None, False
            router.begin_forward()
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        if results is not None:
            results.append(result)
        return [call for call in calls if call[0] not in self._open]


def padded_most(model: nn.Module, options: Mapping[str, object], padding: Padding) -> int | None:
    """The most tokens of an answer, as ``generate`` is asked for them; `ValueError` for options that show lengths anyway."""
    own = getattr(model, "generation_config", None)
    chosen = [options, vars(options.get("generation_config") or own)]
    if any(one.get(name) for one in chosen for name in ("assistant_model", "prompt_lookup_num_tokens")):
        raise ValueError("draft tokens show how often they were right, whatever the padding; leave out one of the two")
    if any(one.get("use_cache") is False for one in chosen):
        raise ValueError("answers without a cache cannot be padded; leave out use_cache=False")
    most: int | None = next((one["max_new_tokens"] for one in chosen if one.get("max_new_tokens")), None)
    if padding.whole_answers and most is None:
        raise ValueError("padding to whole answers needs max_new_tokens")
    return most
