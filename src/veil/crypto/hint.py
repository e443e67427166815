"""The server's half of a batch: the hint G, built once, and the shares h that it makes of each batch's encryptions.

``W·(A·s + e + x) = W·x + H·s + small``, with ``H = W·A`` known in advance (SimplePIR, ePrint 2022/949). The server evaluates
``H·s`` on encryptions of s before a row exists; the ``a`` side of that is fixed by seed and weights (as in YPIR, ePrint
2024/270), so the client has it from the compiler. Sections 4 and 5 of docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil.crypto import public
from veil.kernels.interface import TILE, Array, Hint, Kernels
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.progress import Progress
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]

SHARE_BITS = 32
"""h is a share modulo 2^32."""

_TILES_AT_ONCE = 8


@dataclass(frozen=True)
class HintRows:
    """Weights [rows, width] int8 (an array of the backend) of one group, whose public polynomials are those of ``group``."""

    group: int
    weights: Array


class ServerHint:
    """G of each segment of slots; `prepare` makes the shares of batches."""

    def __init__(self, params: Params, kernels: Kernels, segments: dict[str, Hint], slots: dict[str, int]) -> None:
        self._ring = ring_of(params)
        self._kernels = kernels
        self._segments = segments
        self._slots = slots

    @classmethod
    def build(
        cls,
        params: Params,
        seed: PublicSeed,
        segments: dict[str, list[HintRows]],
        kernels: Kernels,
        progress: Progress | None = None,
    ) -> ServerHint:
        """Build G of each segment's weights, in slot order; ``progress`` is told of each piece."""
        ring = ring_of(params)
        report = progress or (lambda stage, done, total: None)
        slots = {name: sum(len(part.weights) for part in rows) for name, rows in segments.items()}
        built: dict[str, Hint] = {}
        for name, rows in segments.items():
            built[name] = kernels.new_hint(params.blocks(slots[name]), ring)
            step = _TILES_AT_ONCE * TILE
            for first, matrix in enumerate(_pieces(params, seed, rows, kernels, step * ring.w)):
                report(f"hint of the {name}", first * step * ring.w, slots[name])
                kernels.fill_hint(built[name], first * step, matrix, ring)
            report(f"hint of the {name}", slots[name], slots[name])
        return cls(params, kernels, built, slots)

    @classmethod
    def from_arrays(
        cls, params: Params, kernels: Kernels, arrays: dict[str, dict[str, NDArray[np.generic]]], slots: dict[str, int]
    ) -> ServerHint:
        """The inverse of `arrays`, of the same shapes and dtypes; ``slots`` by segment."""
        ring = ring_of(params)
        return cls(params, kernels, {name: kernels.load_hint(own, ring) for name, own in arrays.items()}, slots)

    def arrays(self) -> dict[str, dict[str, NDArray[np.generic]]]:
        """Each segment's arrays, to be kept on disk; shapes and dtypes are the backend's own."""
        return {name: hint.arrays() for name, hint in self._segments.items()}

    def public_tables(self, seed: PublicSeed, params: Params) -> dict[str, U32]:
        """The client's a' of each segment: [T, blocks·w] of ℓ_a-bit words."""
        batch = self._kernels.asarray(public.outer_polynomials(seed, params)[None])
        bits = params.spec.public_bits
        return {
            name: np.array(self._kernels.to_numpy(self._kernels.prepare(hint, batch, bits, self._ring))[0])
            for name, hint in self._segments.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes that G holds."""
        return sum(hint.nbytes for hint in self._segments.values())

    def slots(self, segment: str) -> int:
        """Slots of a segment."""
        return self._slots[segment]

    def prepare(self, batches: Array, segments: Sequence[str]) -> dict[str, Array]:
        """The shares h of B batches [B, terms, 2, N] for each segment asked for: [B, T, blocks·w] uint32, modulo 2^32.

        One pass over G for all of them.
        """
        return {name: self._kernels.prepare(self._segments[name], batches, SHARE_BITS, self._ring) for name in segments}


def hint_bytes(params: Params, slots: Sequence[int]) -> int:
    """Bytes of G for segments of these sizes, in residues of three bytes, before anything is allocated."""
    tiles = sum(-(-params.blocks(count) // TILE) for count in slots)
    return tiles * TILE * params.terms * 2 * params.N * 3


def share_bytes(params: Params, slots: int) -> int:
    """Bytes that a batch's shares of some slots take."""
    return 4 * params.T * params.blocks(slots) * params.w


def _pieces(params: Params, seed: PublicSeed, rows: Sequence[HintRows], kernels: Kernels, step: int) -> Iterator[Array]:
    """H [≤ step, n] of one piece of slots after another; a group may straddle pieces."""
    ring = ring_of(params)
    pending: list[Array] = []
    held = 0
    for part in rows:
        polynomials = public.inner_polynomials(seed, params, part.group, part.weights.shape[1])
        made = kernels.inner_hint(part.weights, polynomials, ring)
        start = 0
        while start < len(made):
            stop = min(len(made), start + step - held)
            pending.append(made[start:stop])
            held, start = held + stop - start, stop
            if held == step:
                yield kernels.concatenate(pending)
                pending, held = [], 0
    if held:
        yield kernels.concatenate(pending)
