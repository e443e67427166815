"""The secret sign vectors of a group, and what they make of weights that the user trusts.

    γ = Σ_{j in chunk} ρ_j·W_q[j, ·]        ρ_j = ±1, secret

A group's slots are cut into chunks: over more slots the noise of the sum hides more. See docs/protocol.md.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.bundle.manifest import Group
from veil.random import SecretRng

I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]

CHUNK = 256
"""The most slots of a chunk: sums of so many weights of 8 bits fit 16 bits."""

LEAST_RESIDUALS = 18
"""A group has so many residuals at least: a change of all its slots by a tenth of their size escapes them all with 2^-40."""

LEAST_VECTORS = 2


@dataclass(frozen=True, eq=False)
class GroupVectors:
    """``signs`` int8 [J, slots]; ``sums`` int16 [chunks, J, width]; ``overlap`` int32 [chunks, J, J].

    ``overlap`` are the products of the vectors' sums over equal rows of weights: those have the same noise, zero rows none.
    Of slots of weights that all differ it is ρ_u·ρ_u'.
    """

    signs: I8
    sums: I16
    overlap: I32

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.signs.nbytes + self.sums.nbytes + self.overlap.nbytes


def edges_of(group: Group) -> I32:
    """Where the chunks of a group begin and end [chunks + 1]: at most `CHUNK` slots each, none across ``prompt_rows``."""
    edges = [0]
    for first, last in ((0, group.prompt_rows), (group.prompt_rows, group.rows)):
        parts = -(-(last - first) // CHUNK)
        edges += [first + (last - first) * part // parts for part in range(1, parts + 1)]
    return np.array(edges, dtype=np.int32)


def vectors_of(group: Group) -> int:
    """J, how many sign vectors a group has."""
    chunks = len(edges_of(group)) - 1
    return max(LEAST_VECTORS, -(-LEAST_RESIDUALS // chunks))


def make_vectors(group: Group, weights: I8, rng: SecretRng) -> GroupVectors:
    """Fresh vectors of a group for its weights [rows, width]; `ValueError` for weights of another shape."""
    if weights.shape != (group.rows, group.width):
        raise ValueError(f"group {group.name!r} has weights of {weights.shape}, expected {(group.rows, group.width)}")
    made = VectorMaker(group, rng)
    for first, last in made.chunks:
        made.add(weights[first:last])
    return made.done()


class VectorMaker:
    """Makes fresh vectors of a group from its weights, which come a chunk at a time: `chunks` are their slots."""

    def __init__(self, group: Group, rng: SecretRng) -> None:
        edges, count = edges_of(group), vectors_of(group)
        self.chunks = [(int(first), int(last)) for first, last in itertools.pairwise(edges)]
        self._signs = _signs(count, group.rows, rng)
        self._sums = np.empty((len(self.chunks), count, group.width), dtype=np.int16)
        self._overlap = np.empty((len(self.chunks), count, count), dtype=np.int32)
        self._added = 0

    def add(self, weights: I8) -> None:
        """The weights [slots, width] of the next chunk."""
        first, last = self.chunks[self._added]
        own = self._signs[:, first:last].astype(np.float32)
        self._sums[self._added] = own @ weights.astype(np.float32)  # whole numbers below 2^15, exact
        self._overlap[self._added] = _overlap(own, weights)
        self._added += 1

    def done(self) -> GroupVectors:
        """The vectors, when all chunks were added."""
        assert self._added == len(self.chunks)
        return GroupVectors(self._signs, self._sums, self._overlap)


def _signs(count: int, slots: int, rng: SecretRng) -> I8:
    words = rng.words16(-(-count * slots // 16))
    bits = np.unpackbits(words.view(np.uint8))[: count * slots]
    return (bits.astype(np.int8) * 2 - 1).reshape(count, slots)


def _overlap(signs: NDArray[np.float32], weights: I8) -> I32:
    places: dict[bytes, int] = {}
    classes = np.array([places.setdefault(row.tobytes(), len(places)) for row in weights])
    totals = np.zeros((len(signs), len(places)), dtype=np.float32)
    for vector, own in zip(totals, signs, strict=True):
        np.add.at(vector, classes, own)
    silent = places.get(bytes(weights.shape[1]))
    if silent is not None:
        totals[:, silent] = 0
    return (totals @ totals.T).astype(np.int32)
