"""Every row's results are checked here before their values are used, and the squares of the residuals after each pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from veil.bundle.manifest import Manifest
from veil.checks.running import RunningTest
from veil.checks.spread import covariance, on_kernels, whitening
from veil.checks.vectors import GroupVectors, edges_of
from veil.errors import WrongAnswer
from veil.kernels.interface import Array, Kernels, Rows, Scaling, SignVectors
from veil.params import Params

F64 = NDArray[np.float64]

BOUND = 8.0
"""Deviations of the noise that a residual may have: an honest one has more once in 10^15."""

_BLOCK = 16
"""Rows whose squares are added at once: in more, a single bad one is lost."""


class AnswerChecks:
    """The checks of one client's session with one server, against the weights that ``against`` names.

    ``caught`` is told in words what was found, once, before `WrongAnswer` is raised; every later call raises it again.
    """

    def __init__(
        self,
        vectors: Sequence[GroupVectors],
        manifest: Manifest,
        params: Params,
        kernels: Kernels,
        against: str,
        caught: Callable[[str], None] | None = None,
    ) -> None:
        self.against = against
        self._manifest = manifest
        self._kernels = kernels
        self._tell = caught
        self._found: str | None = None
        self._vectors: list[dict[int, SignVectors]] = []
        self._whitening: list[F64] = []
        self._places: list[slice] = []
        freedom: list[int] = []
        for group, own in zip(manifest.groups, vectors, strict=True):
            spread = covariance(own, group, params)
            slots = {group.rows, group.prompt_rows} - {0}
            self._vectors.append({count: on_kernels(own, group, spread, count, kernels) for count in slots})
            self._whitening.append(whitening(spread))
            chunks = len(edges_of(group)) - 1
            self._places.append(slice(len(freedom), len(freedom) + chunks))
            freedom += [own.signs.shape[0]] * chunks
        self._running = RunningTest(np.array(freedom))
        self._pending: list[tuple[int, Array]] = []
        self._flat = _Flat(self._whitening)

    @property
    def residuals_per_row(self) -> int:
        """Residuals of a row through all groups."""
        return sum(own[max(own)].count for own in self._vectors)

    def stop_if_caught(self) -> None:
        """Raise `WrongAnswer` again where a wrong answer was found: nothing more is sent."""
        if self._found is not None:
            raise WrongAnswer(self._found)

    def check(
        self, group: int, x: Array, data: Array, scaling: Scaling, shares: Sequence[Rows], column: int, slots: int
    ) -> None:
        """Raise `WrongAnswer` unless a group's packed results [R, bytes] fit the rows x [R, width] that were sent."""
        self.stop_if_caught()
        bits = self._manifest.groups[group].result_bits
        vectors = self._vectors[group][slots]
        residuals, worst = self._kernels.residuals(data, x, scaling, shares, column, bits, vectors)
        largest = float(worst[0] if len(worst) == 1 else worst.max())
        if not largest <= BOUND:
            self._refuse(group, f"off by {largest:.0f} times the noise, {BOUND:.0f} are allowed")
        self._pending.append((group, residuals))

    def end_pass(self) -> None:
        """Add what a forward pass showed to the running test; raises `WrongAnswer`."""
        pending, self._pending = self._pending, []
        if len(pending) == len(self._places) and all(
            group == place and len(rows) == 1 for place, (group, rows) in enumerate(pending)
        ):
            found = self._running.add(self._flat.squares([self._kernels.to_numpy(rows) for _, rows in pending]), 1)
            if found is not None:
                self._refuse_running(next(g for g, place in enumerate(self._places) if place.stop > found))
            return
        for group, rows in pending:
            self._add(group, self._kernels.to_numpy(rows))

    def _add(self, group: int, rows: F64) -> None:
        whitening = self._whitening[group]
        own = rows.reshape(len(rows), -1, whitening.shape[1])
        squares = np.square(np.matmul(whitening[: own.shape[1]], own[..., None])).sum(axis=(2, 3))
        start = self._places[group].start
        for first in range(0, len(rows), _BLOCK):
            part = squares[first : first + _BLOCK]
            if self._running.add(part.sum(axis=0), len(part), slice(start, start + own.shape[1])) is not None:
                self._refuse_running(group)

    def _refuse_running(self, group: int) -> NoReturn:
        self._refuse(group, "each row's within the noise, and together too far for it")

    def _refuse(self, group: int, how: str) -> NoReturn:
        name = self._manifest.groups[group].layers[0].name
        self._found = (
            f"the server's answers for {name} are not those of {self.against}: {how}; nothing more is sent to it, and "
            "the answer so far is not to be trusted"
        )
        if self._tell is not None:
            self._tell(self._found)
        raise WrongAnswer(self._found)


class _Flat:
    """The squares of a pass of one row through all groups at once: groups with as many vectors are whitened together."""

    def __init__(self, whitening: Sequence[F64]) -> None:
        self._sizes = sorted({len(own[0]) for own in whitening})
        self._groups = {size: [g for g, own in enumerate(whitening) if len(own[0]) == size] for size in self._sizes}
        self._matrices = {size: np.concatenate([whitening[g] for g in self._groups[size]]) for size in self._sizes}
        ends = np.cumsum([len(own) for own in whitening])
        self._places = {
            size: np.concatenate([np.arange(ends[g] - len(whitening[g]), ends[g]) for g in self._groups[size]])
            for size in self._sizes
        }
        self._chunks = int(ends[-1])

    def squares(self, rows: Sequence[F64]) -> F64:
        """q [chunks] of each group's residuals [1, chunks·J]."""
        out = np.empty(self._chunks)
        for size in self._sizes:
            own = np.concatenate([rows[group][0] for group in self._groups[size]]).reshape(-1, size)
            white = np.einsum("kab,kb->ka", self._matrices[size], own)
            out[self._places[size]] = np.einsum("ka,ka->k", white, white)
        return out
