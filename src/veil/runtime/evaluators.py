"""One way each to get a group's outputs: encrypted (a session), in clear, or in clear with the noise that is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from veil import noise
from veil.bundle.constants import row_norms
from veil.bundle.manifest import Manifest
from veil.errors import NotFiniteActivation
from veil.kernels.interface import Array, Kernels, Rows, Scaling, first_slots
from veil.params import Params

WHOLE = 32
"""Bits of a word that nothing is rounded off."""


class Evaluator(Protocol):
    """A group's outputs [R, rows] float32 for its inputs [R, width] float32; `veil.client.session.ClientSession` is one.

    With ``slots`` the rows are a prompt's, and only as many outputs are asked for, from the first on.
    """

    def evaluate(self, group: int, x: Array, slots: int | None = None) -> Array:
        """The outputs [R, slots or all rows] float32, in a new array."""
        ...


class ClearLayers:
    """The integer layers in clear (mode ``disable``): the same kernels as a session's, with pads and shares of zero."""

    def __init__(self, manifest: Manifest, weights: Sequence[Array], scalings: Sequence[Scaling], kernels: Kernels) -> None:
        self._manifest = manifest
        self._weights = weights
        self._scalings = scalings
        self._kernels = kernels
        self._zeros: Array | None = None

    def evaluate(self, group: int, x: Array, slots: int | None = None) -> Array:
        """Inputs [R, width] → outputs [R, slots] float32, as in `Evaluator`; `NotFiniteActivation` for NaN or infinity."""
        info, kernels, rows = self._manifest.groups[group], self._kernels, len(x)
        slots = info.rows if slots is None else slots
        scaling = first_slots(self._scalings[group], slots)
        nothing = [Rows(self._nothing(rows, max(info.width, info.rows)), 0, rows)]
        data, scales = kernels.encrypt(x, scaling, nothing, 0, WHOLE)
        if not kernels.finite(scales):
            raise NotFiniteActivation(f"NaN or infinity reached {info.name}; generation stops here")
        reply = kernels.answer(data, self._weights[group][:slots], nothing, 0, (WHOLE, WHOLE))
        return kernels.decrypt(reply, scaling, [Rows(self._error(group, nothing[0].material), 0, rows)], 0, WHOLE, scales)

    def _error(self, group: int, nothing: Array) -> Array:
        """What is subtracted from the products: at least as many rows and words as they have."""
        return nothing

    def _nothing(self, rows: int, words: int) -> Array:
        held = self._zeros
        if held is None or held.shape[0] < rows or held.shape[1] < words:
            held = self._zeros = self._kernels.zeros(max(rows, 1), words)
        return held


class SimulatedLayers(ClearLayers):
    """The integer layers in clear plus Gaussian noise of the predicted variance (mode ``simulate``)."""

    def __init__(
        self,
        manifest: Manifest,
        weights: Sequence[Array],
        scalings: Sequence[Scaling],
        kernels: Kernels,
        params: Params,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(manifest, weights, scalings, kernels)
        self._params = params
        self._rng = rng
        self._sigmas: dict[int, NDArray[np.float64]] = {}

    def _error(self, group: int, nothing: Array) -> Array:
        info = self._manifest.groups[group]
        if group not in self._sigmas:
            norms = row_norms(self._kernels.to_numpy(self._weights[group]))
            bits = noise.WireBits(info.input_bits, info.result_bits)
            self._sigmas[group] = np.sqrt(noise.result(self._params, norms, bits))
        error = self._rng.standard_normal((nothing.shape[0], info.rows)) * self._sigmas[group]
        return self._kernels.asarray(np.rint(error).astype(np.int64).astype(np.uint32))
