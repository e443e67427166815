"""Makes masks on the card for a `DeviceSession`: keys of an epoch, the client's half, and what the server needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from veil.client.factory import ClientModel
from veil.client.pool import MaskPool
from veil.client.stats import Stats
from veil.crypto import public
from veil.crypto.device_secret import DeviceMaskMaker, DeviceOuterKey, DeviceRng, Errors
from veil.crypto.mask import ClientMask
from veil.crypto.secret import inner_secret
from veil.kernels import cuda
from veil.random import SecretRng
from veil.wire import device_codec
from veil.wire.messages import MaskUpload

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Material of masks that were made at once: ``rows`` [T, words], μ [T, slots] by segment."""

    rows: Tensor
    mu: dict[str, Tensor]


@dataclass(eq=False, repr=False)
class BatchedMask(ClientMask):
    """A mask on the card, and its place in the batch that it is a part of."""

    batch: Batch
    place: int


class DeviceFactory:
    """Makes masks, as many of an epoch at once as are asked for, and puts them into a pool."""

    def __init__(self, model: ClientModel, transport: Any, rng: SecretRng, stats: Stats, pool: MaskPool) -> None:
        self._model = model
        self._transport = transport
        self._rng = rng
        self._stats = stats
        self._pool = pool
        params, words = model.params, DeviceRng(rng)
        self._outer_errors = Errors(params.spec.outer_sigma, words)
        inner_errors = Errors(params.spec.inner_sigma, words)
        self.maker = DeviceMaskMaker(params, model.seed, model.manifest.widths, model.tables, inner_errors)
        self._key_halves = cuda.asarray(public.key_halves(model.seed, params))
        sets = [public.mask_half(model.seed, params, m) for m in range(params.masks_per_epoch)]
        self._mask_halves = cuda.asarray(np.stack(sets))
        self._key: DeviceOuterKey | None = None
        self._epoch = -1
        self._next_set = 0
        self._made = 0

    def make(self, count: int, *, full: bool) -> None:
        """Make ``count`` masks, with the head if ``full``, and add them to the pool."""
        segments = tuple(self._model.manifest.segments)
        if not full:
            segments = tuple(name for name in segments if name != "head") or segments
        while count:
            with self._stats.phase("prepare"):
                masks = self._make_batch(count, segments)
                if not cuda.interpreted():
                    torch.cuda.synchronize()
            self._pool.add(self._pool.session, masks, full=full)
            count -= len(masks)

    def close(self) -> None:
        """Forget keys and masks."""
        self._key = None
        self._pool.clear()

    def _make_batch(self, count: int, segments: Sequence[str]) -> list[BatchedMask]:
        params, key = self._model.params, self._current_key()
        first, count = self._next_set, min(count, self._model.params.masks_per_epoch - self._next_set)
        numbers = range(self._made, self._made + count)
        self._next_set, self._made = first + count, self._made + count
        secrets = cuda.asarray(np.stack([inner_secret(self._rng, params) for _ in range(count)]))
        data = device_codec.encode_masks(key.encrypt_masks(first, self._mask_halves, secrets), params)
        rows, shares = self.maker.make(first, key, secrets, segments)
        self._transport.prepare(self._epoch, numbers, range(first, first + count), data, segments)
        self._stats.masks += count
        self._stats.bytes_up_ahead += count * (params.mask_bytes + MaskUpload.HEADER_BYTES)
        batch = Batch(rows, shares)
        return [BatchedMask(number, *_of(batch, t), set(), batch, t) for t, number in enumerate(numbers)]

    def _current_key(self) -> DeviceOuterKey:
        """The epoch's key; a new one, sent ahead, when every set of the last was used."""
        params = self._model.params
        if self._key is None or self._next_set == params.masks_per_epoch:
            key = DeviceOuterKey(params, self._rng, self._outer_errors)
            keys = device_codec.encode_keys(key.galois_keys(self._key_halves), params)
            self._epoch += 1
            self._transport.load_epoch(self._epoch, keys)
            self._stats.bytes_up_ahead += params.epoch_key_bytes
            self._key, self._next_set = key, 0
        return self._key


def _of(batch: Batch, place: int) -> tuple[Any, Any]:
    return batch.rows[place], {name: share[place] for name, share in batch.mu.items()}
