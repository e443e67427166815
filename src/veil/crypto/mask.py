"""The client's half of a mask: ``A·s + e`` for every input, and the shares μ that undo the server's h. Client only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.crypto import public
from veil.crypto.secret import OuterKey, secret_points
from veil.errors import MaskReused
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.random import GaussianTable, SecretRng
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]


@dataclass(eq=False, repr=False)
class ClientMask:
    """One-time material for one token row: ``rows`` [Σ chunks·n] of ``A·s + e``, μ [slots] by segment.

    `spend` hands out the part of one group and refuses to do so twice.
    """

    number: int
    rows: U32
    mu: dict[str, U32]
    _spent: set[int]

    def spend(self, group: int) -> None:
        """Mark the group's part used; `MaskReused` if it was."""
        if group in self._spent:
            raise MaskReused(f"mask {self.number} was already used for group {group}; each use needs a fresh mask")
        self._spent.add(group)

    def is_spent(self, group: int) -> bool:
        """Whether the group's part was handed out."""
        return group in self._spent

    def __repr__(self) -> str:
        return f"<ClientMask {self.number}>"

    def __reduce__(self) -> str:
        raise TypeError("a mask cannot be pickled or copied")


class MaskMaker:
    """Makes client masks from the bundle's public side: inner polynomials of all groups and the table ``a'``."""

    def __init__(
        self, params: Params, seed: PublicSeed, widths: Sequence[int], tables: dict[str, U32], kernels: ModuleType
    ) -> None:
        self._params = params
        self._ring = ring_of(params)
        self._kernels = kernels
        self._errors = GaussianTable(params.spec.inner_sigma)
        polynomials = [public.inner_polynomials(seed, params, group, width) for group, width in enumerate(widths)]
        self._inner = kernels.load_inner(np.concatenate(polynomials), self._ring)
        chunks = [len(part) for part in polynomials]
        self._starts = [int(start) * params.n for start in np.cumsum([0, *chunks[:-1]])]
        self._public = {name: self._load_table(table) for name, table in tables.items()}

    def group_start(self, group: int) -> int:
        """Where a group's part of ``ClientMask.rows`` starts."""
        return self._starts[group]

    def make(
        self, number: int, index: int, key: OuterKey, secret: NDArray[np.int8], segments: Sequence[str], rng: SecretRng
    ) -> ClientMask:
        """The client's half for an inner secret [n] that was encrypted as set ``index`` under ``key``."""
        products = self._kernels.secret_products(
            self._inner, secret_points(secret, self._kernels, self._ring), self._ring.inner_tables, self._ring
        ).reshape(-1)
        errors = self._kernels.gaussian(rng.words64(products.size), self._errors.cumulative, self._errors.guide)
        products += errors.view(np.uint32)
        return ClientMask(number, products, {name: self._share(name, index, key) for name in segments}, set())

    def _share(self, segment: str, index: int, key: OuterKey) -> U32:
        """``μ = (a'·z mod 2^k_a)·2^(32-k_a)``: the shift drops what lies above k_a bits."""
        ring = self._ring
        products: U32 = self._kernels.secret_products(self._public[segment][index], key.points, ring.tables, ring)
        return (products << np.uint32(32 - self._params.spec.public_mask_bits)).reshape(-1)

    def _load_table(self, table: U32) -> U32:
        """``a'`` [M, blocks·N] of k_a-bit words → centred, as points [M, blocks, 2, N]."""
        params, ring = self._params, self._ring
        bits = params.spec.public_mask_bits
        signed = table.astype(np.int32)
        signed[table >= 1 << (bits - 1)] -= 1 << bits
        points: U32 = self._kernels.centred_points(signed.reshape(-1, params.N), ring.tables, ring)
        return points.reshape(len(table), -1, 2, params.N)
