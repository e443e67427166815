"""The mode in which remote layers run: of the model from now on, or of one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from veil.hybrid.arguments import checked_hints, checked_rows
from veil.hybrid.attached import AttachedModel
from veil.runtime.concrete import mode_name, split_mode

MODES = ("torch", "disable", "simulate", "execute", "remote")


class Modes(AttachedModel):
    """The part of `HybridFHEModel` that chooses how remote layers run."""

    @property
    def fhe_mode(self) -> str:
        """The mode in force."""
        return self._calls.mode

    def set_fhe_mode(self, mode: str) -> None:
        """Choose how remote layers run.

        ``torch``: the float layers. ``disable``: the integer layers in clear. ``simulate``: those plus predicted noise.
        ``execute``: real encryption, client and server as two objects of this process; with the CUDA kernels the client's
        half is where the model is, on the GPU (``model.to("cuda")``) or on this processor. ``remote``: the server that
        `connect` reached. ``execute`` builds the server's hint at its first use, and makes a session with fresh keys.
        """
        mode, passes = _known_mode(mode), self._calls.passes
        with passes.lock:
            if mode != "torch":
                self._prepare(mode)
            passes.mode = mode
            self._calls.forget_training()
            if self._calls.sides is not None:
                router = self.sides.router
                if mode != "torch":
                    router.evaluator = self.sides.evaluator(mode)
                router.candidates = self.sides.candidates(self.fhe_mode)
                if router.stream is not None:
                    router.stream.active = mode != "torch"

    def _prepare(self, mode: str) -> None:
        """Have ready what evaluates in a mode other than ``torch``."""
        sides = self.sides
        sides.offline_rows, sides.hints = checked_rows(self.offline_rows), checked_hints(self.hints)
        sides.evaluator(mode)

    def __call__(self, *args: object, fhe: str | None = None, **kwargs: object) -> Any:
        """One forward pass, in mode ``fhe`` if given: of this call alone, whatever other threads do."""
        inputs, mode = split_mode(args, fhe)
        if mode is None:
            with self._calls.passed():
                return self.model(*inputs, **kwargs)
        with self.mode_of_call(mode), self._calls.passed():
            return self.model(*inputs, **kwargs)

    @contextmanager
    def mode_of_call(self, mode: str | Enum) -> Iterator[None]:
        """Calls of the model inside the block, in this thread, are in ``mode``, whatever `set_fhe_mode` chose."""
        name, passes = _known_mode(mode), self._calls.passes
        if name != "torch":
            with passes.lock:
                self._prepare(name)
        with passes.chosen(name):
            yield


def _known_mode(mode: object) -> str:
    name = str(mode_name(mode))
    if name not in MODES:
        raise ValueError(f"mode is {name!r}, expected one of {', '.join(MODES)}")
    return name
