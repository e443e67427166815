"""The trusted half: keys, masks ahead of time, encryption and decryption of rows. It talks bytes to a `Transport`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.client.pool import MaskPool
from veil.client.stats import Stats
from veil.crypto import public
from veil.crypto.mask import ClientMask, MaskMaker
from veil.crypto.secret import OuterKey, inner_secret
from veil.errors import NotFiniteActivation
from veil.model.manifest import Manifest
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.wire import codec
from veil.wire.messages import MaskUpload
from veil.wire.transport import Transport

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ClientModel:
    """What a session needs of the client half of a bundle: no weight, only public tables and what scales inputs.

    ``tables`` are ``a'`` [M, slots] by segment.
    """

    params: Params
    seed: PublicSeed
    manifest: Manifest
    tables: dict[str, NDArray[np.uint32]]


class ClientSession:
    """One session with one server: fresh keys every epoch, masks prepared ahead, rows evaluated with one mask each."""

    def __init__(
        self, model: ClientModel, transport: Transport, kernels: ModuleType, rng: SecretRng, stats: Stats
    ) -> None:
        self.model = model
        self.stats = stats
        self._transport = transport
        self._kernels = kernels
        self._rng = rng
        self._maker = MaskMaker(model.params, model.seed, model.manifest.widths, model.tables, kernels)
        self._key_halves = public.key_halves(model.seed, model.params)
        self._mask_halves = [public.mask_half(model.seed, model.params, m) for m in range(model.params.masks_per_epoch)]
        self._pool = MaskPool(model.manifest)
        self._name = transport.open()
        self._key: OuterKey | None = None
        self._epoch = -1
        self._sets_left: list[int] = []
        self._made = 0
        self._batch = 1
        self._body_rows = 0
        self._head_rows = 0
        self._expect_head = False

    def begin_forward(self) -> None:
        """Tell the session that a forward pass starts: groups are brought level, used masks are forgotten."""
        self._expect_head = self._head_rows >= self._body_rows > 0
        self._body_rows = self._head_rows = 0
        self._transport.release(self._name, self._pool.level())

    def reserve(self, body: int = 0, full: int = 0) -> None:
        """Prepare ``body`` masks without the head and ``full`` masks with it."""
        segments = tuple(self.model.manifest.segments)
        if body:
            self._prepare(body, tuple(name for name in segments if name != "head") or segments)
        if full:
            self._prepare(full, segments)

    def evaluate(self, group: int, x: F32, tau: NDArray[np.float64]) -> I32:
        """``W_q·round(τ·x)`` plus noise for rows x [R, width] of one group → [R, rows] integers.

        Takes R fresh masks, marked spent before a byte leaves; prepares more if the pool is short. Raises
        `NotFiniteActivation` if τ is not finite.
        """
        if not np.isfinite(tau).all():
            name = self.model.manifest.groups[group].name
            raise NotFiniteActivation(f"NaN or infinity reached {name}; nothing was sent")
        self._ensure(group, len(x))
        info = self.model.manifest.groups[group]
        spec = self.model.params.spec
        masks = self._pool.take(group, len(x))
        first = self._maker.group_start(group)
        rows = _stack([mask.rows[first : first + info.width] for mask in masks])
        payload = self._kernels.encrypt(x, tau, rows, spec.input_bits).tobytes()
        numbers = [mask.number for mask in masks]
        with self.stats.phase("online_server"):
            reply = self._transport.evaluate(self._name, group, numbers, payload)
        self.stats.bytes_up_online += len(payload)
        self.stats.bytes_down_online += len(reply)
        return self._decrypt(group, masks, reply)

    def close(self) -> None:
        """End the session and forget keys and masks."""
        self._transport.close(self._name)
        self._pool.clear()
        self._key = None

    def _decrypt(self, group: int, masks: Sequence[ClientMask], reply: bytes) -> I32:
        info = self.model.manifest.groups[group]
        start = self.model.manifest.starts[group]
        bits = self.model.params.spec.result_bits
        data = codec.rows_from(reply, len(masks), info.rows, bits)
        mu = _stack([mask.mu[info.segment][start : start + info.rows] for mask in masks])
        result: I32 = self._kernels.decrypt(data, mu, bits)
        return result

    def _ensure(self, group: int, rows: int) -> None:
        """Prepare what a call lacks. Single rows double the batch up to an epoch, so that a long generation amortises."""
        head = self.model.manifest.groups[group].segment == "head"
        self._body_rows = max(self._body_rows, 0 if head else rows)
        self._head_rows += rows if head else 0
        self.stats.rows += rows if group == 0 else 0
        missing = rows - self._pool.ready(group)
        if missing <= 0:
            return
        if not head and rows > 1 and not self._expect_head:
            self.reserve(body=missing)
            return
        self._batch = min(2 * self._batch, self.model.params.masks_per_epoch)
        self.reserve(full=max(missing, self._batch))

    def _prepare(self, count: int, segments: tuple[str, ...]) -> None:
        with self.stats.phase("prepare"):
            while count:
                key = self._current_key()
                batch = min(count, len(self._sets_left))
                sets = [self._sets_left.pop(0) for _ in range(batch)]
                made, uploads = [], []
                for index in sets:
                    secret = inner_secret(self._rng, self.model.params)
                    half = key.encrypt_mask(index, self._mask_halves[index], secret)
                    data = codec.encode_mask(half, self.model.params, self._kernels)
                    uploads.append(MaskUpload(self._made, index, data))
                    made.append(self._maker.make(self._made, index, key, secret, segments, self._rng))
                    self._made += 1
                self._transport.prepare(self._name, self._epoch, uploads, segments)
                self._pool.add(made)
                self.stats.masks += batch
                self.stats.bytes_up_ahead += sum(len(u.data) + MaskUpload.HEADER_BYTES for u in uploads)
                count -= batch

    def _current_key(self) -> OuterKey:
        """The epoch's key; a new one, sent ahead, when every set of the last was used."""
        if self._key is None or not self._sets_left:
            self._key = OuterKey(self.model.params, self._kernels, self._rng)
            self._epoch += 1
            keys = codec.encode_keys(self._key.galois_keys(self._key_halves), self.model.params, self._kernels)
            self._transport.load_epoch(self._name, self._epoch, keys)
            self.stats.bytes_up_ahead += len(keys)
            self._sets_left = list(range(self.model.params.masks_per_epoch))
        return self._key


def _stack(rows: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
