"""The client's half of a batch: one secret for T rows, its encryption for the server, and what hides and reveals each row.

Client only: nothing that a server imports may reach this module. Sections 3 to 5 of docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from veil.crypto import public
from veil.errors import RowReused
from veil.kernels.interface import Array, Kernels
from veil.kernels.memory import room
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.random import ProcessMark, SecretRng
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]


class RowBatch:
    """T rows of one-time material: pads ``A·s + e`` [T, inputs of all groups] and shares μ [T, slots] by segment.

    A group takes rows in their order, by `take`, each once; that is the one rule by which rows are spent. A batch belongs to
    the process that made it: after a fork, the child's `take` raises. It has no representation and cannot be pickled.
    """

    def __init__(self, number: int, pads: Array, shares: dict[str, Array], groups: int, rows: int) -> None:
        self.number = number
        self.rows = rows
        self.pads = pads
        self.shares = shares
        self._taken = [0] * groups
        self._process = ProcessMark()

    def taken(self, group: int) -> int:
        """How many of its first rows the group may not use any more."""
        return self._taken[group]

    def take(self, group: int, count: int) -> int:
        """Spend the group's next ``count`` rows; the first of them. `RowReused` if there are not so many."""
        first = self._taken[group]
        if not self._process.here:
            raise RowReused("a batch of rows belongs to the process that made it; open a session after the fork")
        if count < 0 or first + count > self.rows:
            raise RowReused(f"batch {self.number} has no {count} rows left for group {group}; each row is used once")
        self._taken[group] = first + count
        return first

    def skip(self, group: int, upto: int) -> None:
        """Spend the group's rows before row ``upto`` unused."""
        self._taken[group] = max(self._taken[group], min(upto, self.rows))

    def __repr__(self) -> str:
        return f"<RowBatch {self.number}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a batch of rows cannot be pickled or copied")


class BatchMaker:
    """Makes batches from a bundle's public side: the inner polynomials of all groups and the tables a'.

    The last ``back`` groups are those of segment ``back``. Gradients come when the forward pass is over, so their rows are
    those of other batches.
    """

    def __init__(
        self,
        params: Params,
        seed: PublicSeed,
        widths: Sequence[int],
        slots: dict[str, int],
        tables: dict[str, U32],
        kernels: Kernels,
        rng: SecretRng,
        back: int = 0,
    ) -> None:
        self._params = params
        self._ring = ring_of(params)
        self._kernels = kernels
        self._rng = rng
        self._slots = slots
        self._groups = len(widths)
        polynomials = [public.inner_polynomials(seed, params, group, width) for group, width in enumerate(widths)]
        there = len(polynomials) - back
        sides = {False: polynomials[:there], True: polynomials[there:]}
        self._starts = [start * params.r for side in sides.values() for start in _before([len(part) for part in side])]
        self._elements = {which: sum(len(part) for part in side) for which, side in sides.items()}
        self._inner = {which: kernels.load_inner(_joined(side), self._ring) for which, side in sides.items() if side}
        self._outer = kernels.asarray(public.outer_polynomials(seed, params))
        self._public = {name: kernels.load_public(table, self._ring) for name, table in tables.items()}
        self._inner_errors = kernels.errors(rng, params.spec.inner_sigma)
        self._outer_errors = kernels.errors(rng, params.spec.outer_sigma)

    def group_start(self, group: int) -> int:
        """The column of a batch's pads where a group's inputs begin."""
        return self._starts[group]

    @property
    def pad_words(self) -> int:
        """Words of a row's pads, for the inputs of all groups of a forward pass."""
        return self._elements[False] * self._params.r

    @property
    def batch_bytes(self) -> int:
        """Bytes of memory that a batch for forward passes takes here, with all their segments."""
        return 4 * self._params.T * (self.pad_words + sum(self._slots[name] for name in self._slots if name != "back"))

    def make(self, numbers: Sequence[int], segments: Sequence[str]) -> tuple[Array, list[RowBatch]]:
        """A batch of each number, under fresh secrets s and z of its own: what goes to the server, packed [batches, bytes]
        uint8, and what stays here.

        s hides the batch's rows; z encrypts s, once, and is forgotten. Batches are for forward passes, or for segment
        ``back`` alone: of the other groups they have no pads.
        """
        params, ring, kernels = self._params, self._ring, self._kernels
        back = "back" in segments
        assert not back or list(segments) == ["back"]
        count, columns = len(numbers), self._elements[back] * params.r
        secrets = kernels.asarray(self._rng.ternary(count * params.n).reshape(count, params.k, params.m))
        z = kernels.asarray(self._rng.ternary(count * params.N).reshape(count, params.N))
        errors = self._outer_errors.draw(count, params.terms, params.N)
        uploads = kernels.encrypt_batches(self._outer, z, secrets, errors, ring)
        drawn = (self._inner_errors.draw(params.T, columns) for _ in numbers)
        pads = kernels.pads(self._inner[back], secrets, drawn, ring)
        shares = [kernels.shares(self._public[name], z, self._slots[name], ring) for name in segments]
        batches = [
            RowBatch(number, own, dict(zip(segments, parts, strict=True)), self._groups, params.T)
            for number, own, *parts in zip(numbers, pads, *shares, strict=True)
        ]
        return uploads, batches

    def __repr__(self) -> str:
        return "<BatchMaker>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("what makes secrets cannot be pickled or copied")


def _joined(parts: Sequence[U32]) -> U32:
    """Arrays [elements, k, m] one after the other, in memory that the first batch's shares have next."""
    whole = room((sum(map(len, parts)), *parts[0].shape[1:]), np.uint32)
    return np.concatenate(parts, out=whole)


def _before(counts: Sequence[int]) -> list[int]:
    """How much stands before each of some parts."""
    return [int(start) for start in np.cumsum([0, *counts[:-1]])] if counts else []
