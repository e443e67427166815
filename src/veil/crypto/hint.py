"""The server's half of a mask: Ĥ, the fixed ``a`` side, and the ``b`` side for a batch of masks.

``W·(A·s + e + x) = W·x + H·s + small``, with ``H = W·A`` known in advance (SimplePIR, ePrint 2022/949). The server
evaluates ``H'·s`` on encryptions of s: expansion (ePrint 2017/1142), a product with plaintext polynomials, a combination
by automorphisms. The ``a`` side of all that is fixed by the seed (as in YPIR, ePrint 2024/270), so it is done once here
and only the ``b`` side is done for a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.crypto import public
from veil.kernels.memory import aligned
from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.progress import Progress
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]

SHARE_BITS = 32
"""h is a share modulo 2^32."""


@dataclass(frozen=True)
class HintRows:
    """Weights [rows, width] int8 of one group of layers, whose public polynomials are those of ``group``."""

    group: int
    weights: I8


@dataclass(frozen=True)
class _Segment:
    """Slots of a segment, and its blocks among those of all segments."""

    slots: int
    first: int
    last: int


@dataclass(frozen=True)
class PreparedKeys:
    """An epoch's key halves as the kernels take them (arrays, or tensors on a device).

    Expansion [L, 2, 3, N] and combination [G-1, 2, 3, N].
    """

    expansion: Any
    combination: Any


@dataclass(frozen=True)
class MaskHalf:
    """One mask to prepare: its set in the epoch, its ``b`` half [2, N] and its epoch's keys."""

    index: int
    half: U32
    keys: PreparedKeys


class Hint:
    """Ĥ and the stored ``a`` side of all segments, one after the other; `prepare` makes the shares h of a batch of masks.

    ``hint`` is [2, N, blocks·G, I], ``digits`` those of the expansion [M, I-1, 2, 3, N] and ``rotations`` those of the
    combination [M, blocks, G-1, 2, 3, N].
    """

    def __init__(
        self, params: Params, kernels: ModuleType, hint: U32, digits: U32, rotations: U32, segments: dict[str, _Segment]
    ) -> None:
        self._params = params
        self._ring = ring_of(params)
        self._kernels = kernels
        self._hint = hint
        self._digits = digits
        self._rotations = rotations
        self._segments = segments

    @classmethod
    def build(
        cls,
        params: Params,
        seed: PublicSeed,
        segments: dict[str, list[HintRows]],
        kernels: ModuleType,
        progress: Progress | None = None,
    ) -> tuple[Hint, dict[str, U32]]:
        """Build Ĥ for each segment's rows (in slot order) and the a side of all M sets.

        Returns the hint and, for each segment, the client's table ``a'`` [M, slots rounded up to N] of
        ``public_mask_bits``-bit words.
        """
        ring = ring_of(params)
        report = progress or (lambda stage, done, total: None)
        places, blocks = _places(params, segments)
        hint = aligned((2, params.N, blocks * params.fold, params.leaves), np.uint32)
        for name, rows in segments.items():
            own = hint[:, :, places[name].first * params.fold : places[name].last * params.fold]
            _fill_hint(own, params, seed, rows, kernels, ring, name, report)
        keys = prepare_keys(public.key_halves(seed, params), params, kernels)
        count = params.masks_per_epoch
        digits = aligned((count, params.leaves - 1, 2, 3, params.N), np.uint32)
        leaves = np.empty((count, params.leaves, 2, params.N), dtype=np.uint32)
        rotations = aligned((count, blocks, params.fold - 1, 2, 3, params.N), np.uint32)
        table = np.empty((count, blocks * params.N), dtype=np.uint32)
        for m in range(count):
            report("public side of the masks", m, count)
            digits[m], leaves[m] = kernels.expand_a(public.mask_half(seed, params, m), keys.expansion, ring)
        products = kernels.product(hint, leaves.transpose(2, 3, 0, 1), ring)
        for m in range(count):
            report("public side of the outputs", m, count)
            rotations[m], table[m] = kernels.combine_a(products[m], keys.combination, params.spec.public_mask_bits, ring)
        report("public side of the outputs", count, count)
        tables = {name: table[:, p.first * params.N : p.last * params.N].copy() for name, p in places.items()}
        return cls(params, kernels, hint, digits, rotations, places), tables

    @property
    def nbytes(self) -> int:
        """Bytes that the hint holds."""
        return self._hint.nbytes + self._digits.nbytes + self._rotations.nbytes

    def slots(self, segment: str) -> int:
        """Slots of a segment."""
        return self._segments[segment].slots

    def prepare(self, masks: Sequence[MaskHalf], segments: Sequence[str]) -> dict[str, U32]:
        """The shares h of T masks for each segment asked for: [T, slots], modulo 2^32. One pass over Ĥ for all T."""
        if not masks:
            return {name: np.empty((0, self._segments[name].slots), dtype=np.uint32) for name in segments}
        halves = np.stack([mask.half for mask in masks])
        digits = [self._digits[mask.index] for mask in masks]
        leaves = self._kernels.expand_b(halves, digits, [mask.keys.expansion for mask in masks], self._ring)
        shares = {}
        for first, last, names in _runs({name: self._segments[name] for name in segments}):
            whole = self._combined(leaves, masks, first, last)
            for name in names:
                start = (self._segments[name].first - first) * self._params.N
                shares[name] = whole[:, start : start + self._segments[name].slots]
        return shares

    def _combined(self, leaves: U32, masks: Sequence[MaskHalf], first: int, last: int) -> U32:
        """The shares [T, (last - first)·N] of blocks that follow each other."""
        fold = self._params.fold
        products = self._kernels.product(self._hint[:, :, first * fold : last * fold], leaves, self._ring)
        rotations = [self._rotations[mask.index, first:last] for mask in masks]
        keys = [mask.keys.combination for mask in masks]
        combined: U32 = self._kernels.combine_b(products, rotations, keys, SHARE_BITS, self._ring)
        return combined


def _places(params: Params, segments: dict[str, list[HintRows]]) -> tuple[dict[str, _Segment], int]:
    """Where each segment's blocks are, and how many there are in all."""
    places: dict[str, _Segment] = {}
    blocks = 0
    for name, rows in segments.items():
        slots = sum(len(part.weights) for part in rows)
        places[name] = _Segment(slots, blocks, blocks + params.blocks(slots))
        blocks = places[name].last
    return places, blocks


def _runs(places: dict[str, _Segment]) -> list[tuple[int, int, list[str]]]:
    """First and last block of segments that follow each other, with their names: as few runs as there can be."""
    runs: list[tuple[int, int, list[str]]] = []
    for name, place in sorted(places.items(), key=lambda item: (item[1].first, item[1].last)):
        if runs and runs[-1][1] == place.first:
            runs[-1] = (runs[-1][0], place.last, [*runs[-1][2], name])
        else:
            runs.append((place.first, place.last, [name]))
    return runs


def prepare_keys(halves: U32, params: Params, kernels: ModuleType) -> PreparedKeys:
    """Key halves [keys, 2, 3, N] in the kernels' form, split by use."""
    loaded = kernels.load_keys(kernels.asarray(halves), ring_of(params))
    return PreparedKeys(loaded[: params.levels], loaded[params.levels :])


def hint_bytes(params: Params, slots: Sequence[int]) -> int:
    """Bytes of Ĥ and digits for segments of these sizes, before anything is allocated."""
    blocks = sum(params.blocks(count) for count in slots)
    polynomial = 4 * params.N
    expansion = params.masks_per_epoch * (params.leaves - 1) * 6 * polynomial
    combination = params.masks_per_epoch * blocks * (params.fold - 1) * 6 * polynomial
    return blocks * params.n * 2 * polynomial + expansion + combination


def _fill_hint(
    hint: U32,
    params: Params,
    seed: PublicSeed,
    rows: Sequence[HintRows],
    kernels: ModuleType,
    ring: Ring,
    name: str,
    report: Progress,
) -> None:
    blocks = hint.shape[2] // params.fold
    for block, matrix in enumerate(_hint_blocks(params, seed, rows, kernels, ring)):
        report(f"hint of the {name}", block, blocks)
        hint[:, :, block * params.fold : (block + 1) * params.fold] = kernels.outer_hint(matrix, ring)
    report(f"hint of the {name}", blocks, blocks)


def _hint_blocks(
    params: Params, seed: PublicSeed, rows: Sequence[HintRows], kernels: ModuleType, ring: Ring
) -> Iterator[NDArray[np.int32]]:
    """H' [≤ N, n] of one block of slots after another; a group may straddle blocks."""
    pending = np.empty((0, params.n), dtype=np.int32)
    for part in rows:
        polynomials = public.inner_polynomials(seed, params, part.group, part.weights.shape[1])
        start = 0
        while start < len(part.weights):
            stop = min(len(part.weights), start + params.N - len(pending))
            made = kernels.inner_hint(
                np.ascontiguousarray(part.weights[start:stop]), polynomials, params.spec.result_bits, ring
            )
            pending = np.concatenate([pending, made])
            start = stop
            if len(pending) == params.N:
                yield pending
                pending = np.empty((0, params.n), dtype=np.int32)
    if len(pending):
        yield pending
