"""Makes batches of rows for one session after another, and sends the server what it needs to prepare them."""

from __future__ import annotations

import threading

from veil.bundle.client_half import ClientModel
from veil.client.pool import RowPool
from veil.client.stats import Stats
from veil.crypto.batch import BatchMaker, RowBatch
from veil.errors import CorruptMessage, QuotaExceeded, ServerUnreachable, UnknownSession
from veil.flag import Flag
from veil.kernels.interface import Kernels
from veil.network.timeouts import Timeouts
from veil.random import SecretRng
from veil.wire.messages import BatchUpload
from veil.wire.transport import Transport


class RowMaker:
    """Makes batches and puts them into a pool; opens another session, with fresh secrets, when the server forgot the last.

    Thread safe: one upload is made at a time. A batch whose upload may or may not have arrived is thrown away and made
    anew; the server is told to forget it.
    """

    def __init__(
        self,
        model: ClientModel,
        transport: Transport,
        kernels: Kernels,
        rng: SecretRng,
        stats: Stats,
        pool: RowPool,
        timeouts: Timeouts,
    ) -> None:
        self._model = model
        self._transport = transport
        self._stats = stats
        self._pool = pool
        self._timeouts = timeouts
        self._at_once = kernels.batches_at_once
        manifest = model.manifest
        self.batches = BatchMaker(
            model.params,
            model.seed,
            manifest.widths,
            manifest.segments,
            model.tables,
            kernels,
            rng,
            back=len(manifest.back),
        )
        self._lock = threading.RLock()
        self._stopping = Flag()
        self._made = 0
        self._abandoned: list[int] = []
        self._open()

    def make(self, rows: int, *, full: bool) -> None:
        """Make batches for this many rows, with the head if ``full``; they are in the pool when the server has them."""
        segments = tuple(name for name in self._model.manifest.segments if name != "back")
        if not full:
            segments = tuple(name for name in segments if name != "head") or segments
        self._make_all(rows, segments, full)

    def make_back(self, rows: int) -> None:
        """Make batches for this many rows of gradients; they are in the pool when the server has them."""
        self._make_all(rows, ("back",), False)

    def _make_all(self, rows: int, segments: tuple[str, ...], full: bool) -> None:
        count = -(-rows // self._model.params.T)
        while count > 0:
            with self._lock:
                count -= self._make(min(count, self._at_once), segments, full)

    def reopen(self, session: str) -> None:
        """Open a new session unless the one that failed is over already."""
        with self._lock:
            if self._pool.session == session:
                self._stats.sessions_lost += 1
                self._open()

    def stop(self) -> None:
        """End the upload that is under way, from any thread; it and later ones raise `ServerUnreachable`."""
        self._stopping.set()
        self._transport.stop()

    def close(self) -> None:
        """Stop, and forget every batch."""
        self.stop()
        with self._lock:
            self._pool.start_session("")

    def _open(self) -> None:
        session = self._transport.open()
        self._abandoned = []
        self._pool.start_session(session, 0.9 * self._transport.batch_ttl_s)

    def _make(self, count: int, segments: tuple[str, ...], full: bool) -> int:
        tries = self._timeouts.retries(stop=self._stopping)
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
                if not tries.again():
                    raise
            except QuotaExceeded:
                self._release_abandoned(session)
                raise
            else:
                self._release_abandoned(session)
                self._pool.add(session, made, full=full, back="back" in segments)
                return count

    def _send(self, session: str, count: int, segments: tuple[str, ...]) -> list[RowBatch]:
        with self._stats.phase("prepare"):
            numbers = range(self._made, self._made + count)
            self._made += count
            data, made = self.batches.make(numbers, segments)
            uploads = [BatchUpload(number, own) for number, own in zip(numbers, data, strict=True)]
            try:
                with self._stats.phase("prepare_server"):
                    self._transport.prepare(session, uploads, segments)
            except (ServerUnreachable, CorruptMessage):
                self._abandoned += [upload.number for upload in uploads]
                raise
            self._stats.rows_made += count * self._model.params.T
            self._stats.bytes_up_offline += count * (self._model.params.batch_bytes + BatchUpload.HEADER_BYTES)
            return made

    def _release_abandoned(self, session: str) -> None:
        """Give up batches that the server may have, once it has answered a later upload: then none of them comes after."""
        if self._abandoned:
            self._transport.release(session, self._abandoned)
            self._abandoned = []
