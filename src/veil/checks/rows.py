"""Every row's results are checked here before their values are used, and the squares of the residuals after each pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from veil.bundle.manifest import Manifest
from veil.checks.lifetime import KeptTest
from veil.checks.running import RunningTest
from veil.checks.spread import covariance, on_kernels, whitening
from veil.checks.vectors import GroupVectors
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
        self._bits = [group.result_bits for group in manifest.groups]
        self._slots = [group.rows for group in manifest.groups]
        self._kernels = kernels
        self._waits = not kernels.asks_cheaply
        """Whether a row's residuals are looked at when its pass ends: a GPU's are on their way until then."""

        self._tell = caught
        self.found: str | None = None
        self.vectors: list[dict[int, SignVectors]] = []
        """Of each group, by the slots of an answer."""

        self._whitening: list[F64] = []
        for group, own in zip(manifest.groups, vectors, strict=True):
            spread = covariance(own, group, params)
            slots = {group.rows, group.prompt_rows} - {0}
            self.vectors.append({count: on_kernels(own, group, spread, count, kernels) for count in slots})
            self._whitening.append(whitening(spread))
        self._row = _OneRow(self._whitening)
        self._whole = [own[max(own)] for own in self.vectors]
        self.running = RunningTest(self._row.freedom)
        known = [(self._whole[group], self._bits[group]) for group in self._row.order]
        self._test = self.running.one_row(kernels, known, self._row.whitening, BOUND)
        self._places = dict(zip(self._row.order, self._test.places, strict=True))
        self._tested = False
        """Whether the row that is there was tested while its pass was replayed."""

        self._has_passed = [False] * len(self._slots)
        self._passed = 0
        self._pending: list[tuple[int, Array]] = []
        self._kept: KeptTest | None = None

    @property
    def residuals_per_row(self) -> int:
        """Residuals of a row through all groups."""
        return sum(own[max(own)].count for own in self.vectors)

    @property
    def residuals(self) -> list[tuple[int, F64]]:
        """Group and residuals [R, chunks·J] of each answer in the pass that is under way."""
        several = [(group, self._kernels.to_numpy(own)) for group, own in self._pending]
        return [*self._of_row(), *several]

    def _of_row(self) -> list[tuple[int, F64]]:
        """Group and residuals [1, chunks·J] of the groups that a row has passed."""
        groups = [group for group, has_passed in enumerate(self._has_passed) if has_passed]
        own = self._test.residuals if groups else None
        return [] if own is None else [(group, own[None, self._row.spans[group]]) for group in groups]

    def keep(self, half: str, server: str) -> None:
        """Go on with the running test of earlier sessions of this half with this server, and keep it for later ones."""
        self._kept = KeptTest(half, server, self.running)

    def close(self) -> None:
        """Keep what was seen, where it is kept."""
        if self._kept is not None:
            self._kept.write()

    def stop_if_caught(self) -> None:
        """Raise `WrongAnswer` again where a wrong answer was ``found``: nothing more is sent."""
        if self.found is not None:
            raise WrongAnswer(self.found)

    def decrypt(
        self,
        group: int,
        sent: Array,
        data: Array,
        scaling: Scaling,
        shares: Sequence[Rows],
        column: int,
        slots: int,
        scales: Array,
    ) -> Array:
        """A group's packed results [R, bytes] as [R, slots] float32, if they fit the R rows that were ``sent``.

        Raises `WrongAnswer` if they do not; where asking would wait for a GPU, `end_pass` does for passes of one row.
        """
        one_row = len(sent) == 1 and slots == self._slots[group]
        if one_row:
            if self._has_passed[group]:
                self._keep_apart()
            self._has_passed[group] = True
            self._passed += 1
            vectors, residuals = self._whole[group], self._places[group]
        else:
            vectors = self.vectors[group][slots]
            residuals = self._kernels.asarray(np.empty((len(sent), vectors.count)))
            self._pending.append((group, residuals))
        y, worst = self._kernels.decrypt_checked(
            data, sent, scaling, shares, column, self._bits[group], scales, vectors, residuals
        )
        if not (one_row and self._waits):
            self._check_size(group, float(worst))
        return y

    def record_test(self) -> None:
        """While a pass is recorded: have its row's residuals in it and, if the row went through all groups, its test."""
        if self._passed == len(self._has_passed):
            self._test.launch()
        else:
            self._test.compute()

    def before_replay(self) -> None:
        """Have ready what a recorded pass changes; raises `WrongAnswer` again where something was found."""
        self.stop_if_caught()
        self._test.ready()

    def replayed(self, groups: Sequence[int]) -> None:
        """Note a pass of one row through these groups, each once, that was recorded with `record_test` and replayed."""
        self._tested = len(groups) == len(self._has_passed)
        if self._tested:
            self._test.replayed()
        else:
            for group in groups:
                self._has_passed[group] = True
            self._passed = sum(self._has_passed)

    def forget_row(self) -> None:
        """Forget a pass of one row that was not made after all."""
        self._has_passed = [False] * len(self._has_passed)
        self._passed = 0
        self._test.forget()

    def end_pass(self) -> None:
        """Add what a forward pass showed to the running test; raises `WrongAnswer`."""
        whole = self._passed == len(self._has_passed)
        tested, self._tested = self._tested or whole, False
        if whole:
            self._test.launch()
            self.forget_row()
        elif self._passed:
            self._keep_apart()
        if tested and not self._test.passed():
            self._refuse_row()
        pending, self._pending = self._pending, []
        for group, rows in pending:
            self._add(group, self._kernels.to_numpy(rows))
        if self._kept is not None:
            self._kept.end_pass()

    def _keep_apart(self) -> None:
        """Have the residuals of rows that came one by one where others do not follow them."""
        for group, own in self._of_row():
            self._pending.append((group, self._kernels.asarray(own.copy())))
            if self._waits:
                largest = np.abs(own).max(initial=0.0)
                self._check_size(group, float(largest))
        self.forget_row()

    def _add(self, group: int, rows: F64) -> None:
        whitening = self._whitening[group]
        own = rows.reshape(len(rows), -1, whitening.shape[1])
        squares = np.square(np.matmul(whitening[: own.shape[1]], own[..., None])).sum(axis=(2, 3))
        start = self._row.chunks[group].start
        for first in range(0, len(rows), _BLOCK):
            part = squares[first : first + _BLOCK]
            if self.running.add(part.sum(axis=0), len(part), slice(start, start + own.shape[1])) is not None:
                self._refuse_running(group)

    def _check_size(self, group: int, largest: float) -> None:
        """Raise `WrongAnswer` where a group's largest residual is no honest one's, or no number."""
        if not largest <= BOUND:
            self._refuse(group, f"off by {largest:.0f} times the noise, {BOUND:.0f} are allowed")

    def _refuse_row(self) -> NoReturn:
        """Say what is wrong with the row that is there, which did not pass its test."""
        residuals = self._test.residuals
        for group in self._row.beyond(residuals, BOUND):
            self._check_size(group, float(np.abs(residuals[self._row.spans[group]]).max()))
        found = self.running.beyond
        assert found is not None
        self._refuse_running(self._row.group_of(found))

    def _refuse_running(self, group: int) -> NoReturn:
        self._refuse(group, "each row's within the noise, and together too far for it")

    def _refuse(self, group: int, how: str) -> NoReturn:
        name = self._manifest.groups[group].layers[0].name
        self.found = (
            f"the server's answers for {name} are not those of {self.against}: {how}; nothing more is sent to it, and "
            "the answer so far is not to be trusted"
        )
        if self._tell is not None:
            self._tell(self.found)
        raise WrongAnswer(self.found)


class _OneRow:
    """The order of a row's residuals in all groups: those with as many vectors lie together.

    Groups are in ``order``; ``spans`` say where a group's residuals lie, ``chunks`` which chunks of the running test are its
    own, ``freedom`` J of all chunks, and ``whitening`` has their matrices one after the other.
    """

    def __init__(self, whitening: Sequence[F64]) -> None:
        sizes = [own.shape[1] for own in whitening]
        order = sorted(range(len(sizes)), key=lambda group: sizes[group])
        counts = [own.shape[0] * own.shape[1] for own in whitening]
        self.spans = [slice(0)] * len(sizes)
        self.chunks = [slice(0)] * len(sizes)
        self.order = order
        place = chunk = 0
        for group in order:
            own = len(whitening[group])
            self.spans[group] = slice(place, place + counts[group])
            self.chunks[group] = slice(chunk, chunk + own)
            place, chunk = place + counts[group], chunk + own
        self.freedom = np.concatenate([np.full(len(whitening[group]), sizes[group]) for group in order])
        self.whitening = np.concatenate([whitening[group].reshape(-1) for group in order])

    def group_of(self, chunk: int) -> int:
        """The group that a chunk of the running test belongs to."""
        return next(group for group in self.order if self.chunks[group].stop > chunk)

    def beyond(self, residuals: F64, bound: float) -> list[int]:
        """The groups, in their order, some of whose residuals [chunks·J] are not within the bound."""
        outside = ~(np.abs(residuals) <= bound)
        return [group for group, span in enumerate(self.spans) if outside[span].any()] if outside.any() else []
