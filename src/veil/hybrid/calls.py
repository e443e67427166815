"""A model's own ``forward`` and ``generate``, as passes through its remote layers: what is done around each, and checked."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from veil.bundle.compiled import Compiled
from veil.client.session import ClientSession
from veil.client.stats import Stats
from veil.compile.compiler import compiled_modules
from veil.errors import ModelChanged
from veil.given import function_given
from veil.hybrid.sides import Sides
from veil.runtime.adapters import base_of
from veil.runtime.coverage import Coverage, signature_of
from veil.runtime.experts import ExpertLeak, open_layers
from veil.runtime.layers import RemoteLayer
from veil.runtime.padding import Padding
from veil.runtime.passes import Forward, Passes
from veil.runtime.rehearsal import pictured_tokens
from veil.runtime.router import Router
from veil.runtime.tracers import refuse_tracers
from veil.runtime.traffic import Traffic, padded_most
from veil.runtime.weight_changes import Fingerprints

CancelCheck = Callable[[], None]


class ModelCalls:
    """Replaces ``model.forward`` and ``model.generate`` by calls that know of passes, modes, padding and training.

    ``sides`` are None until the model is compiled. ``cancel_check`` gives what is called before every evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, RemoteLayer],
        expert_leak: ExpertLeak,
        stats: Stats,
        cancel_check: Callable[[], CancelCheck | None],
    ) -> None:
        self.sides: Sides | None = None
        self._model = model
        self._layers = layers
        self._open_layers = open_layers(model, layers, expert_leak)
        self._stats = stats
        self._cancel_check = cancel_check
        self._traffic: Traffic | None = None
        self._padding: Padding | None = None
        self._fingerprints: Fingerprints | None = None
        self._coverage: Coverage | None = None
        self._generating = False
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.disable_compile = True  # torch.compile cannot look into a remote layer
        self._entries = _entries(model)
        self.passes = Passes(model, layers, self._around_pass, self._planned, frozenset(self._entries))
        self.forward: Forward = model.forward
        model.forward = _like(model.forward, self._forward)
        if callable(getattr(model, "generate", None)):
            self._model_generate: Forward = model.generate  # type: ignore[assignment]
            self._asks_if_alone = "synced_gpus" in inspect.signature(self._model_generate).parameters
            model.generate = _like(self._model_generate, self._generate)  # type: ignore[assignment]

    @property
    def mode(self) -> str:
        """The mode of this call."""
        return self.passes.mode_now

    @property
    def session(self) -> ClientSession | None:
        """The session of the mode of this call."""
        return None if self.sides is None else self.sides.session(self.mode)

    def follow(self, router: Router) -> None:
        """Take a new router, and plan passes anew."""
        self.passes.current = router
        pictured = pictured_tokens(getattr(self._model, "config", None))
        self._traffic = Traffic(router, self._open_layers, pictured, lambda: _moved_on(self._model))
        self._traffic.padding = self._padding

    def watch(self, compiled: Compiled, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Notice from now on weights that change, and passes that do not ask what calibration with these arguments asked."""
        signature = signature_of(self.forward, args, kwargs)
        self._coverage = Coverage(self._model, self._layers, compiled.manifest, compiled.asked, signature)
        self._fingerprints = Fingerprints(compiled_modules(self._model, self._layers, compiled.manifest))

    def unwatch_weights(self) -> None:
        """Notice changes of weights no more: they are not here."""
        self._fingerprints = None

    def forget_training(self) -> None:
        """Let the next pass in training say anew which layers get gradients."""
        if self._traffic is not None:
            self._traffic.forget_training()

    @contextmanager
    def passed(self) -> Iterator[None]:
        """`ModelChanged` if what is called inside the block went around the model's own forward, and so around passes."""
        passes = self.passes
        before = passes.count
        yield
        if passes.count == before and not passes.is_inside and self.mode != "torch":
            raise ModelChanged(
                "the forward of this model was replaced after it was wrapped, so nothing was encrypted; let the new forward "
                "call the old one, or make a new HybridFHEModel"
            )

    def check_weights(self) -> None:
        """`ModelChanged` if weights are not those that were compiled."""
        if self._fingerprints is not None:
            self._fingerprints.check(values=not self._generating)

    @property
    def padding(self) -> Padding | None:
        """The steps that a server sees in place of lengths."""
        return self._padding

    @padding.setter
    def padding(self, padding: Padding | None) -> None:
        self._padding = padding
        if self._traffic is not None:
            self._traffic.padding = padding
            self._traffic.stopping.clear()

    def stop_padding(self, stop: bool) -> None:
        """End answers that go on in passes of zeros, from any thread, and let none begin; or let them again."""
        if self._traffic is not None:
            (self._traffic.stopping.set if stop else self._traffic.stopping.clear)()

    # What the model's methods do now -----------------------------------------------------------------------------------

    @property
    def _is_training(self) -> bool:
        """Whether gradients may come back through what is called now."""
        return torch.is_grad_enabled() and self.sides is not None and bool(self.sides.compiled.manifest.back)

    def _threads(self) -> AbstractContextManager[None]:
        return nullcontext() if self.sides is not None and self.sides.on_gpu else _one_torch_thread()

    def _generate(self, *args: object, **kwargs: object) -> object:
        if self._asks_if_alone and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            kwargs.setdefault("synced_gpus", False)  # it would load what splits models over machines, to see that none is
        if self.mode == "torch":
            return self._model_generate(*args, **kwargs)
        self.check_weights()
        self._generating = True
        try:
            with self._threads(), self._padded(kwargs), self.passed():
                return self._model_generate(*args, **kwargs)
        finally:
            self._generating = False

    @contextmanager
    def _padded(self, kwargs: dict[str, object]) -> Iterator[None]:
        """A generation with these options, in which passes of zeros follow up to the step that padding says."""
        session, traffic, sides = self.session, self._traffic, self.sides
        if session is None or sides is None or traffic is None or traffic.padding is None:
            yield
            return
        router = sides.router
        before = router.evaluator

        def begin() -> None:
            router.evaluator = session
            session.begin_forward()

        most = padded_most(self._model, kwargs, traffic.padding)
        try:
            with traffic.generation(most, begin, session.end_forward):
                yield
        finally:
            router.evaluator = before

    def _planned(self, name: str, forward: Forward, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """The result of a part of the model, or of all of it: what it asks of a server is fixed before, by its shape."""
        if self.session is None or self._traffic is None or self._traffic.inside:
            return forward(*args, **kwargs)
        trains = None
        if self._is_training:
            trains = (self._model.training, tuple(own.requires_grad for own in self._model.parameters()))
        return self._traffic.run(self._entries.get(name, name), forward, args, kwargs, trains)

    def _forward(self, *args: object, **kwargs: object) -> object:
        passes, sides = self.passes, self.sides
        if passes.router is None or passes.is_inside or sides is None:
            return self.forward(*args, **kwargs)
        with passes.opened():
            training = self._is_training
            sides.router.last_row_only = not training and _asks_last_row(self._model, kwargs)
            graph = sides.graph if self.mode == "execute" and not args and not training else None
            result = None if graph is None else graph(kwargs)
            if result is None:
                if "" in self._entries:
                    result = self._planned("", self.forward, args, kwargs)
                else:  # a wrapper: the model within is planned
                    result = self.forward(*args, **kwargs)
                if self._coverage is not None:
                    signature = functools.partial(signature_of, self.forward, args, kwargs)
                    self._coverage.check(passes.asked, passes.entered, signature)
        return result

    @contextmanager
    def _around_pass(self, mode: str, fresh: bool) -> Iterator[None]:
        """Everything that a pass needs beside the model, or a part that goes on with one: see `Passes`."""
        if not self._generating:  # which looked when it began
            self.check_weights()
        sides, passes = self.sides, self.passes
        assert sides is not None
        other = passes.is_chosen or mode != passes.mode or sides.router.evaluator is None
        evaluator = sides.evaluator(mode) if other else None
        router, session, training = sides.router, self.session, self._is_training
        before, stream = (router.evaluator, router.candidates), router.stream
        if evaluator is not None:
            router.evaluator, router.candidates = evaluator, sides.candidates(mode)
        router.cancel_check = function_given("cancel_check", self._cancel_check(), "a function without arguments")
        if stream is not None:
            stream.active = True
        if fresh:
            router.begin_forward()
            if session is not None:
                session.begin_forward(training)
        start, spent = time.perf_counter(), dict(self._stats.seconds)
        try:
            with self._threads(), torch.set_grad_enabled(training):
                yield
            if session is not None:
                session.end_forward()
            router.ask_stream()
        finally:
            router.last_row_only = False
            if other:
                router.evaluator, router.candidates = before
            if stream is not None:
                stream.active = passes.mode != "torch"
        elapsed, seconds = time.perf_counter() - start, self._stats.seconds
        elsewhere = sum(seconds[name] - spent[name] for name in ("wait", "online_server"))
        seconds["client"] += elapsed - elsewhere


def _moved_on(model: nn.Module) -> list[torch.Tensor]:
    """The buffers that a pass in training moves on, as norms over a batch keep them."""
    moving = (module for module in model.modules() if module.training and getattr(module, "track_running_stats", False))
    return [buffer for module in moving for buffer in module.buffers(recurse=False)]


def _asks_last_row(model: nn.Module, arguments: dict[str, object]) -> bool:
    """Whether a pass wants the logits of the last row of each sequence, and nothing else of it but the cache."""
    asked = arguments.get("logits_to_keep")
    config = getattr(model, "config", None)
    shown = ("output_hidden_states", "output_attentions")
    return (
        isinstance(asked, int)
        and asked == 1
        and arguments.get("labels") is None
        and not any(arguments.get(name) or getattr(config, name, False) for name in shown)
    )


def _entries(model: nn.Module) -> dict[str, str]:
    """What traffic calls the parts whose passes make up a generation: the model within its wrappers, and its encoder."""
    base = base_of(model)
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    found = {names.get(base, ""): "forward"}
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        found[names.get(base.get_encoder(), "encoder")] = "encoder"  # type: ignore[operator]
    return found


def _like(forward: Forward, replacement: Forward) -> Forward:
    """``replacement`` with the signature of ``forward``, in which ``generate`` looks for ``logits_to_keep``."""

    @functools.wraps(forward)
    def wrapped(*args: object, **kwargs: object) -> object:
        refuse_tracers()
        return replacement(*args, **kwargs)

    return wrapped


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch's thread pool from spinning on the cores that the kernels use, or a server and other clients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
