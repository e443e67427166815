"""Launching a Triton kernel again: what Triton works out of a call's arguments is kept, by all that it depends on.

Triton binds, sorts and hashes the arguments of every launch to find the machine code for them. That takes longer than the
small kernels of a row do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from veil.kernels.cuda.device import interpreted

_MOST_INT32 = 2**31 - 1


Argument = torch.Tensor | float


class Chosen(Protocol):
    """The machine code for some arguments, Triton's ``CompiledKernel``."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...


class TritonKernel(Protocol):
    """A kernel as ``triton.jit`` makes it."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Chosen]: ...


class Launcher:
    """Launches a kernel with the machine code that ``kernel[grid](...)`` takes."""

    def __init__(self, kernel: TritonKernel) -> None:
        self._kernel = kernel
        self._free = frozenset(own.num for own in getattr(kernel, "params", ()) if own.do_not_specialize)
        self._known: dict[tuple[object, ...], Chosen] = {}

    def __call__(self, grid: tuple[int, ...], *arguments: Argument, **options: int) -> None:
        """Launch it with all its arguments in order, and Triton's options in one order; a grid has one to three sizes."""
        if interpreted():
            self._kernel[grid](*arguments, **options)
            return
        key = (torch.cuda.current_device(), *options.values(), *self.traits(arguments))
        known = self._known.get(key)
        if known is None:
            self._known[key] = self._kernel[grid](*arguments, **options)
        else:
            known[grid + (1,) * (3 - len(grid))](*arguments)

    def traits(self, arguments: tuple[Argument, ...]) -> list[object]:
        """What the choice of machine code depends on: dtype and alignment of tensors, numbers, of free ones their size."""
        free = self._free
        return [
            (own.dtype, own.data_ptr() & 15 == 0)
            if isinstance(own, torch.Tensor)
            else -_MOST_INT32 - 1 <= own <= _MOST_INT32
            if place in free
            else own
            for place, own in enumerate(arguments)
        ]
