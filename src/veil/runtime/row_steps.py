"""Shorter ways through a model's own modules for a pass of one row: one kernel where torch takes many calls.

A module is recognized by its structure, its own code is tried beside the kernel when it is first asked, and where the two
differ it stays as it is. So it does in mode ``torch``, where gradients are wanted, for several rows, on a GPU and for other
numbers than float32.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules import module as torch_module

from veil.runtime.layers import RemoteLayer, is_hooked
from veil.runtime.plain_row import one_row
from veil.runtime.router import Router

F32 = NDArray[np.float32]
Forward = Callable[..., object]


class RowStep(Protocol):
    """A module's shorter way. ``usable`` is None until it was tried."""

    usable: bool | None

    def answer(self, router: Router, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the module's forward answers, or None where it has to be asked."""


class LocalStep:
    """A step of a module that reads one tensor and holds no remote layer: a row in, a row of the same width out."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.usable: bool | None = None

    def answer(self, router: Router, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `RowStep`."""
        if len(args) != 1 or kwargs or self.usable is False:
            return None
        values = one_row(args[0])
        if values is None:
            return None
        if self.usable is None:
            self.usable = self.agrees()
        if not self.usable:
            return None
        out = np.empty(values.shape, np.float32)
        if not self.compute(values.reshape(-1), out.reshape(-1)):
            return None
        return torch.from_numpy(out)

    def compute(self, x: F32, out: F32) -> bool:
        """Fill ``out`` [width] for x [width]; False where it cannot."""
        raise NotImplementedError

    def agrees(self) -> bool:
        """Whether `compute` gives what the module's own code gives."""
        raise NotImplementedError


def own_forward(module: nn.Module) -> Forward:
    """The forward of the module's class, without hooks and whatever stands before it."""
    return type(module).forward.__get__(module)


def names_read(module: nn.Module) -> frozenset[str]:
    """Names that the forward of a module's class reads of anything; all are unknown (empty) where it is not Python's."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return frozenset() if code is None else frozenset(code.co_names)


def is_plain(layer: object) -> bool:
    """Whether a remote layer, and nothing else, makes what it answers: no hook, observer or adapter takes part."""
    return (
        isinstance(layer, RemoteLayer)
        and not is_hooked(layer)
        and not layer.observers
        and "forward" not in layer.__dict__
        and not (layer._held and is_hooked(layer._held[0]))
        and not torch_module._global_forward_hooks
        and not torch_module._global_forward_pre_hooks
    )


class Stand:
    """Stands for a module while its class's own forward runs: some of its parts are others."""

    def __init__(self, module: nn.Module, **parts: object) -> None:
        self.__dict__.update(parts)
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_module"], name)


class Shortened:
    """A module's forward with its shorter way before it; ``here`` tells the router, and whether a pass is under way.

    A copy of the module has its class's forward.
    """

    def __init__(self, module: nn.Module, step: RowStep, here: Callable[[], tuple[Router | None, bool]]) -> None:
        functools.update_wrapper(self, module.forward)
        self._module, self._step, self._here = module, step, here
        self._forward: Forward = module.forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The module's answer."""
        if self._step.usable is not False:
            router, inside = self._here()
            if inside and router is not None and router.on_cpu and not torch.is_grad_enabled():
                answer = self._step.answer(router, args, kwargs)
                if answer is not None:
                    return answer
        return self._forward(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[nn.Module], Forward], tuple[nn.Module]]:
        return own_forward, (self._module,)


def close(found: F32, expected: torch.Tensor) -> bool:
    """Whether values are equal but for the last bits of float32."""
    own = expected.numpy()
    return bool(
        found.shape == own.shape and np.allclose(found, own, rtol=2e-5, atol=2e-6 * float(np.abs(own).max(initial=0)))
    )


def rows_to_try(width: int) -> Iterator[F32]:
    """Rows [width] to try a step with."""
    rng = np.random.default_rng(width)
    for scale in (1.0, 0.02, 30.0):
        yield (rng.normal(size=width) * scale + 0.1 * scale).astype(np.float32)
