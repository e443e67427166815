"""Passes through a model's remote layers: where one begins and ends, whichever part of the model was called, and its mode.

A pass is one use of every layer: rows are taken level for all groups at its beginning, and what was used is forgotten on
both sides. `generate` of a wrapper (PEFT) calls the model within, an encoder-decoder's encoder is called by itself, and
some programs call block after block; each of those calls is a pass, or a part of one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import nn

from veil.runtime.layers import RemoteLayer
from veil.runtime.router import Router
from veil.runtime.row_modules import step_of
from veil.runtime.row_steps import RowStep, Shortened
from veil.runtime.tracers import refuse_tracers

_CHOSEN: ContextVar[Mapping[int, str]] = ContextVar("veil_modes", default=MappingProxyType({}))
"""Modes that were chosen for one call, by the identity of the model's `Passes`: other threads do not see them."""

Forward = Callable[..., object]
Plan = Callable[[str, Forward, tuple[object, ...], dict[str, object]], object]
"""Of a part's name, its own forward and a call's arguments: the call, whose traffic is fixed before it begins."""
Around = Callable[[str, bool], AbstractContextManager[None]]
"""Of a mode, and whether groups start level: what is to be done around a pass, or around a part of one."""


class Passes:
    """One pass at a time: a call from another thread waits. ``mode`` holds for calls that do not choose another.

    The ``forward`` of every module of ``model`` that holds some of ``layers`` is replaced by one that knows where a pass
    begins. A part of the model whose layers were not asked in the last pass goes on with it, so that block after block, or
    the model without its head and then the head, is one pass. So does what is recomputed on the way back (activation
    checkpointing), in the mode of that pass. ``plan`` calls the parts that something outside calls, and the ``entries``.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, RemoteLayer], around: Around, plan: Plan, entries: frozenset[str]
    ) -> None:
        self.mode = "torch"
        self.asked: set[str] = set()
        """Names of the layers that were asked in the last pass."""
        self.entered: set[str] = set()
        """Names of the modules with remote layers that were called in it."""
        self.count = 0
        """How many passes, and parts of passes, began."""
        self.current: Router | None = None
        self.lock = threading.RLock()
        self._owner: int | None = None
        self._pass_mode = "torch"  # noqa: S105
        self._pass_chosen = _CHOSEN.get()
        self._failed = False
        self._around, self._plan, self._entries = around, plan, entries
        for layer in layers.values():
            layer.passes = self
        inside = _layers_inside(model)
        inside.pop("")
        self.parts = inside
        self.row_steps: dict[str, RowStep] = {}
        """The shorter ways of modules for one row, by the modules' names."""
        self._shorten(model)
        for name, names in inside.items():
            module = model.get_submodule(name)
            module.forward = self._marked(name, frozenset(names), module.forward)

    @property
    def mode_now(self) -> str:
        """The mode of this call."""
        return self._mode_of(self.is_inside)

    def _mode_of(self, inside: bool) -> str:
        """The mode of a call from within a pass, or from outside."""
        chosen = _CHOSEN.get().get(id(self))
        if chosen is not None:
            return chosen
        return self._pass_mode if inside or _is_backward() else self.mode

    @property
    def here(self) -> tuple[Router | None, bool]:
        """`router` and `is_inside`, asked at once by every layer."""
        inside = self._owner == threading.get_ident()
        mode = self._pass_mode if inside and _CHOSEN.get() is self._pass_chosen else self._mode_of(inside)
        return None if mode == "torch" else self.current, inside

    @property
    def is_chosen(self) -> bool:
        """Whether the mode was chosen for this call."""
        return id(self) in _CHOSEN.get()

    @property
    def router(self) -> Router | None:
        """What answers for remote layers in this call; None in mode ``torch``."""
        return self.here[0]

    @property
    def is_inside(self) -> bool:
        """Whether this thread is within a pass."""
        return self._owner == threading.get_ident()

    @contextmanager
    def chosen(self, mode: str) -> Iterator[None]:
        """Calls inside the block, in this thread, are in ``mode``."""
        token = _CHOSEN.set({**_CHOSEN.get(), id(self): mode})
        try:
            yield
        finally:
            _CHOSEN.reset(token)

    @contextmanager
    def opened(self, names: Collection[str] | None = None) -> Iterator[None]:
        """A pass, or what goes on with the last one: a part of the model with layers of these names; None for all of it."""
        with self.lock:
            mode = self.mode_now
            again = not _is_backward() and (names is None or self._failed or not self.asked.isdisjoint(names))
            fresh = again or mode != self._pass_mode
            if fresh:
                self.asked.clear()
                self.entered.clear()
            self.count += 1
            self._owner, self._pass_mode, self._failed = threading.get_ident(), mode, False
            self._pass_chosen = _CHOSEN.get()
            try:
                with self._around(mode, fresh):
                    yield
            except BaseException:
                self._failed = True  # nothing goes on with it, but for the way back, which ends what it recomputes like this
                raise
            finally:
                self._owner = None

    def alone(self, name: str, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """A layer's answer [..., out] to x [..., in], float, where nothing that holds it was called.

        It is that of a pass that was made, if it is recomputed.
        """
        if not _is_backward():
            return forward(x)
        out = self._plan(name, forward, (x,), {})
        assert isinstance(out, torch.Tensor)
        return out

    def _shorten(self, model: nn.Module) -> None:
        """Put the shorter ways for one row before the forward of the modules that have one."""
        within = {id(part) for layer in model.modules() if isinstance(layer, RemoteLayer) for part in layer.modules()}
        for name, module in model.named_modules():
            step = None if id(module) in within else step_of(module, name in self.parts)
            if step is not None:
                self.row_steps[name] = step
                module.forward = Shortened(module, step, lambda: self.here)

    def _marked(self, name: str, names: frozenset[str], forward: Callable[..., object]) -> Callable[..., object]:
        planned = name in self._entries

        @functools.wraps(forward)
        def wrapped(*args: object, **kwargs: object) -> object:
            if self._owner == threading.get_ident():
                self.entered.add(name)
                return self._plan(name, forward, args, kwargs) if planned else forward(*args, **kwargs)
            refuse_tracers()
            if self.router is None:
                return forward(*args, **kwargs)
            with self.opened(names):
                self.entered.add(name)
                return self._plan(name, forward, args, kwargs)

        return wrapped


def _is_backward() -> bool:
    """Whether autograd is on its way back in this thread."""
    return torch._C._current_graph_task_id() != -1


def _layers_inside(model: nn.Module) -> dict[str, list[str]]:
    """For every module that holds remote layers, by its own name, the names of the layers."""
    found: dict[str, list[str]] = {"": []}
    first = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    for place, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, RemoteLayer):
            continue
        parts = place.split(".")
        for depth in range(len(parts)):
            parent = ".".join(parts[:depth])
            own = first[id(model.get_submodule(parent))]
            names = found.setdefault(own, [])
            if module.name not in names:
                names.append(module.name)
    return found
