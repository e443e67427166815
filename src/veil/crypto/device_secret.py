"""The client's secrets on a CUDA device: what `secret` and `mask` do, for a batch of masks at once. Client only.

The integers are those of the host's code for the same ternary secrets and the same uniform words. Ternary secrets are
drawn by the host (a kilobyte each); errors come from a stream cipher on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from veil.crypto import public
from veil.kernels import cuda, cuda_secret
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.random import GaussianTable, SecretRng
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]
Tensor = torch.Tensor


class Words(Protocol):
    """Uniform 64-bit words on the device."""

    def words64(self, count: int) -> Tensor:
        """``count`` words, ``uint64``."""


class DeviceRng:
    """Secret randomness on the device: ChaCha20 under a key that a `SecretRng` draws, rekeyed every gibibyte.

    It has no representation and cannot be pickled.
    """

    _REKEY_BLOCKS = 1 << 24

    def __init__(self, source: SecretRng) -> None:
        self._source = source
        self._left = 0

    def words64(self, count: int) -> Tensor:
        """``count`` uniform 64-bit words."""
        blocks = -(-count // 8)
        if blocks > self._left:
            self._key = cuda.asarray(self._source.words64(4).view(np.uint32).copy())
            self._next, self._left = 0, self._REKEY_BLOCKS
        words = cuda_secret.key_stream(self._key, self._next, blocks)
        self._next, self._left = self._next + blocks, self._left - blocks
        return words.view(torch.uint64)[:count]

    def __repr__(self) -> str:
        return "<DeviceRng>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secret randomness cannot be pickled or copied")


class Errors:
    """Rounded Gaussian errors from uniform words."""

    def __init__(self, sigma: float, words: Words) -> None:
        table = GaussianTable(sigma)
        self._cumulative, self._guide = cuda.asarray(table.cumulative), cuda.asarray(table.guide)
        self._words = words

    def draw(self, *shape: int) -> Tensor:
        """Samples of this shape, ``int32``."""
        words = self._words.words64(int(np.prod(shape)))
        return cuda.gaussian(words, self._cumulative, self._guide).view(shape)


class DeviceOuterKey:
    """The secret ``z`` of one epoch on the device; see `secret.OuterKey`."""

    def __init__(self, params: Params, source: SecretRng, errors: Errors) -> None:
        self._params = params
        self._ring = ring = ring_of(params)
        self._errors = errors
        z = source.ternary(params.N).astype(np.int64)
        residues = (z % ring.moduli_array.astype(np.int64)[:, None]).astype(np.uint32)
        self._z = torch.cat([cuda.ntt(cuda.asarray(residues[i : i + 1]), ring.tables[i]) for i in range(3)])
        message = [params.scale * pow(2, -(params.levels + params.spec.skipped_levels), p) % p for p in params.outer_primes]
        self._message = cuda.asarray(np.array(message, dtype=np.uint32))
        self._used = 0

    @property
    def points(self) -> Tensor:
        """``z`` as points of the two outer primes [2, N]."""
        return self._z[:2]

    def galois_keys(self, halves: Tensor) -> Tensor:
        """The ``b`` halves for the ``a`` halves [keys, 2, 3, N] of `public.key_halves`, as points."""
        errors = self._errors.draw(len(halves), 2, self._params.N)
        return cuda_secret.key_halves(halves, self._z, errors, self._ring)

    def encrypt_masks(self, first: int, halves: Tensor, secrets: Tensor) -> Tensor:
        """The ``b`` halves [T, 2, N] of inner secrets [T, n] int8 under sets ``first`` and following; once each.

        ``halves`` [M, 2, N] are the public halves of all sets. Sets are used in order: any other is refused
        (`RuntimeError`), as it might encrypt twice under one (z, a) pair.
        """
        count = len(secrets)
        if first != self._used or first + count > self._params.masks_per_epoch:
            raise RuntimeError(f"sets {first} to {first + count - 1} of this epoch are not the next unused ones")
        self._used += count
        sets = cuda.asarray(np.arange(first, first + count, dtype=np.int32))
        errors = self._errors.draw(count, self._params.N)
        return cuda_secret.mask_halves(halves, sets, self._z, secrets, errors, self._message, self._ring)

    def __repr__(self) -> str:
        return "<DeviceOuterKey>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key cannot be pickled or copied")


class DeviceMaskMaker:
    """Makes client masks on the device; see `mask.MaskMaker`."""

    def __init__(
        self, params: Params, seed: PublicSeed, widths: Sequence[int], tables: dict[str, U32], errors: Errors
    ) -> None:
        self._params = params
        self._ring = ring = ring_of(params)
        self._errors = errors
        polynomials = [public.inner_polynomials(seed, params, group, width) for group, width in enumerate(widths)]
        self._inner = cuda.load_inner(cuda.asarray(np.concatenate(polynomials)), ring)
        chunks = [len(part) for part in polynomials]
        self._starts = [int(start) * params.n for start in np.cumsum([0, *chunks[:-1]])]
        self._public = {name: self._load_table(table) for name, table in tables.items()}

    @property
    def row_words(self) -> int:
        """Words of ``A·s + e`` that a mask has for the inputs of all groups together."""
        return len(self._inner) * self._params.n

    def group_start(self, group: int) -> int:
        """Where a group's part of a mask's rows starts."""
        return self._starts[group]

    def make(
        self, first: int, key: DeviceOuterKey, secrets: Tensor, segments: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows ``A·s + e`` [T, Σ chunks·n] and shares μ [T, slots] for secrets encrypted as sets ``first`` and following."""
        ring = self._ring
        points = cuda.centred_points(secrets.to(torch.int32), ring.inner_tables, ring)
        rows = cuda.secret_products(self._inner, points, ring.inner_tables, ring).view(len(secrets), -1)
        rows.view(torch.int32).add_(self._errors.draw(*rows.shape))
        return rows, {name: self._shares(name, first, len(secrets), key) for name in segments}

    def _shares(self, segment: str, first: int, count: int, key: DeviceOuterKey) -> Tensor:
        ring = self._ring
        table = self._public[segment][first : first + count]
        products = cuda.secret_products(table.reshape(-1, 2, ring.N), key.points, ring.tables, ring)
        shifted = products.view(torch.int32) << (32 - self._params.spec.public_mask_bits)
        return shifted.view(torch.uint32).view(count, -1)

    def _load_table(self, table: U32) -> Tensor:
        params, ring = self._params, self._ring
        bits = params.spec.public_mask_bits
        signed = cuda.asarray(table.astype(np.int32))
        signed -= (signed >> (bits - 1)) << bits
        points = cuda.centred_points(signed.view(-1, params.N), ring.tables, ring)
        return points.view(len(table), -1, 2, params.N)
