"""Makes masks for one session after another: keys of an epoch, the client's half, and the upload that the server needs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.client.pool import MaskPool
from veil.client.stats import Stats
from veil.crypto import public
from veil.crypto.mask import ClientMask, MaskMaker
from veil.crypto.secret import OuterKey, inner_secret
from veil.errors import CorruptMessage, QuotaExceeded, ServerUnreachable, UnknownSession
from veil.model.manifest import Manifest
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.wire import codec
from veil.wire.messages import MaskUpload
from veil.wire.patience import Patience
from veil.wire.transport import Transport


@dataclass(frozen=True, eq=False)
class ClientModel:
    """What a session needs of the client half of a bundle: no weight, only public tables and what scales inputs.

    ``tables`` are ``a'`` [M, slots] by segment.
    """

    params: Params
    seed: PublicSeed
    manifest: Manifest
    tables: dict[str, NDArray[np.uint32]]


class MaskFactory:
    """Makes masks and puts them into a pool; opens another session, with fresh keys, when the server forgot the last.

    Thread safe: one batch is made at a time. A batch whose upload may or may not have arrived is thrown away, with its
    epoch's key, and made anew; the server is told to forget its masks.
    """

    def __init__(
        self,
        model: ClientModel,
        transport: Transport,
        kernels: ModuleType,
        rng: SecretRng,
        stats: Stats,
        pool: MaskPool,
        patience: Patience,
    ) -> None:
        self._model = model
        self._transport = transport
        self._kernels = kernels
        self._rng = rng
        self._stats = stats
        self._pool = pool
        self._patience = patience
        self.maker = MaskMaker(model.params, model.seed, model.manifest.widths, model.tables, kernels)
        self._key_halves = public.key_halves(model.seed, model.params)
        self._mask_halves = [public.mask_half(model.seed, model.params, m) for m in range(model.params.masks_per_epoch)]
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._key: OuterKey | None = None
        self._epoch = -1
        self._sets_left: list[int] = []
        self._made = 0
        self._abandoned: list[int] = []
        self._open()

    @property
    def mask_bytes(self) -> int:
        """Bytes of memory that one full mask takes."""
        manifest, params = self._model.manifest, self._model.params
        inner = sum(params.inner_chunks(width) * params.n for width in manifest.widths)
        outer = sum(params.blocks(slots) * params.N for slots in manifest.segments.values())
        return 4 * (inner + outer)

    def make(self, count: int, *, full: bool) -> None:
        """Make ``count`` masks, with the head if ``full``, and add them to the pool when the server has them."""
        segments = tuple(self._model.manifest.segments)
        if not full:
            segments = tuple(name for name in segments if name != "head") or segments
        while count:
            with self._lock:
                count -= self._make_batch(count, segments, full)

    def reopen(self, session: str) -> None:
        """Open a new session unless the one that failed is over already."""
        with self._lock:
            if self._pool.session == session:
                self._stats.sessions_lost += 1
                self._open()

    def stop(self) -> None:
        """End the batch that is under way, from any thread; it and later ones raise `ServerUnreachable`."""
        self._stopping.set()
        self._transport.stop()

    def close(self) -> None:
        """Stop, and forget keys and masks."""
        self.stop()
        with self._lock:
            self._key = None
            self._pool.start_session("")

    def _open(self) -> None:
        self._key = None
        session = self._transport.open()
        keep_s = getattr(self._transport, "mask_ttl_s", float("inf"))
        self._abandoned = []
        self._pool.start_session(session, 0.9 * keep_s)

    def _make_batch(self, count: int, segments: tuple[str, ...], full: bool) -> int:
        tries = self._patience.tries(stop=self._stopping)
        while True:
            if self._stopping.is_set():
                raise ServerUnreachable("the session was closed")
            session = self._pool.session
            try:
                made = self._send(session, count, segments)
            except UnknownSession:
                if not tries.again():
                    raise
                self.reopen(session)
            except (ServerUnreachable, CorruptMessage):
                self._key = None
                if not tries.again():
                    raise
            except QuotaExceeded:
                self._key = None
                self._release_abandoned(session)
                raise
            else:
                self._release_abandoned(session)
                self._pool.add(session, made, full=full)
                return len(made)

    def _send(self, session: str, count: int, segments: tuple[str, ...]) -> list[ClientMask]:
        with self._stats.phase("prepare"):
            key = self._current_key(session)
            made, uploads = [], []
            for index in [self._sets_left.pop(0) for _ in range(min(count, len(self._sets_left)))]:
                secret = inner_secret(self._rng, self._model.params)
                half = key.encrypt_mask(index, self._mask_halves[index], secret)
                data = codec.encode_mask(half, self._model.params, self._kernels)
                uploads.append(MaskUpload(self._made, index, data))
                made.append(self.maker.make(self._made, index, key, secret, segments, self._rng))
                self._made += 1
            try:
                self._transport.prepare(session, self._epoch, uploads, segments)
            except (ServerUnreachable, CorruptMessage):
                self._abandoned += [upload.number for upload in uploads]
                raise
            self._stats.masks += len(made)
            self._stats.bytes_up_ahead += sum(len(u.data) + MaskUpload.HEADER_BYTES for u in uploads)
            return made

    def _release_abandoned(self, session: str) -> None:
        """Give up masks that the server may have, once it has answered a later upload: then none of them comes after."""
        if self._abandoned:
            self._transport.release(session, self._abandoned)
            self._abandoned = []

    def _current_key(self, session: str) -> OuterKey:
        """The epoch's key; a new one, sent ahead, when every set of the last was used."""
        if self._key is None or not self._sets_left:
            key = OuterKey(self._model.params, self._kernels, self._rng)
            self._epoch += 1
            keys = codec.encode_keys(key.galois_keys(self._key_halves), self._model.params, self._kernels)
            self._transport.load_epoch(session, self._epoch, keys)
            self._stats.bytes_up_ahead += len(keys)
            self._key, self._sets_left = key, list(range(self._model.params.masks_per_epoch))
        return self._key
