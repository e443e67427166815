"""What uploads and rows of a session must pass before an engine computes for them, and what is kept afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veil.errors import UnknownSession, WireError
from veil.kernels.cpu.siphash import digest_of
from veil.kernels.interface import Array
from veil.server.engine import Claim
from veil.server.store import Session, SessionStore
from veil.wire.messages import Span, Upload, rows_of


@dataclass(frozen=True, eq=False)
class Admitted:
    """An upload that passed every check that needs no arithmetic, with memory promised for its batches."""

    session: Session
    upload: Upload
    batch_bytes: int


class Admission:
    """Uploads and rows of any sessions of a store: any thread may `admit` and `claim`, one at a time may `make`.

    ``one_thread``: whoever makes also multiplies, so that nothing has to be finished before it is kept.
    """

    def __init__(self, store: SessionStore, *, one_thread: bool = False) -> None:
        self.store = store
        self._one_thread = one_thread

    def check_header(self, session: Session, segments: Sequence[str], batches: int) -> None:
        """Refuse what can be refused before the data of an upload of this many batches is received."""
        session.engine.check_header(segments, batches)
        self.store.check_room(session, batches, batches * session.engine.batch_bytes(segments))

    def admit(self, session: Session, upload: Upload) -> Admitted:
        """Check an upload against its session and promise it memory; its order among the session's uploads is set here.

        Raises `WireError` for a wrong segment, number or length, `QuotaExceeded`.
        """
        self.check_header(session, upload.segments, len(upload.batches))
        expected = session.engine.model.params.batch_bytes
        for batch in upload.batches:
            if len(batch.data) != expected:
                raise WireError(f"a batch has {len(batch.data)} bytes, expected {expected}")
        numbers = [batch.number for batch in upload.batches]
        each = session.engine.batch_bytes(upload.segments)
        self.store.reserve(session, numbers, len(numbers) * each)
        return Admitted(session, upload, each)

    def make(self, items: Sequence[Admitted]) -> list[Exception | None]:
        """Prepare uploads of any sessions of one engine, all for the same segments, in one pass; what went wrong with each.

        Raises what fails all of them. Memory promised to an upload whose batches are not kept is given back.
        """
        engine, segments = items[0].session.engine, items[0].upload.segments
        errors: dict[Admitted, Exception] = {}
        promised = dict.fromkeys(items)
        try:
            decoded: dict[Admitted, Array] = {}
            for item in items:
                try:
                    if item.session.closed:
                        raise UnknownSession("the session was closed")
                    decoded[item] = engine.decode(item.upload.batches)
                except Exception as error:
                    errors[item] = error
            shares = engine.shares(list(decoded.values()), segments)
            if not self._one_thread:
                engine.kernels.synchronize()
            first = 0
            for item in decoded:
                try:
                    self._keep(item, shares, first)
                    del promised[item]
                except Exception as error:
                    errors[item] = error
                first += len(item.upload.batches)
        finally:
            for item in promised:
                self.give_back(item)
        return [errors.get(item) for item in items]

    def give_back(self, item: Admitted) -> None:
        """Take back the promise of memory to an upload that is not made."""
        count = len(item.upload.batches)
        self.store.unreserve(item.session, count, count * item.batch_bytes)

    def claim(
        self,
        session: Session,
        group: int,
        spans: Sequence[Span],
        data: Array,
        slots: int,
        *,
        again: bool = True,
        digests: Sequence[int] = (),
    ) -> Claim:
        """Match packed rows [R, bytes] with the shares of their batches, for the group's first ``slots`` outputs.

        With ``again`` the same bytes for the same rows may come once more (a lost reply); other bytes raise `RowReused`.
        ``digests`` are those of the spans' bytes, if they are known.
        Raises `UnknownBatch`, and `WireError` for what does not fit the manifest.
        """
        segment, outputs, row_bytes = session.engine.place(group)
        if not 0 < slots <= outputs:
            raise WireError(f"{slots} outputs of group {group}, which has {outputs}")
        rows = rows_of(spans)
        if tuple(data.shape) != (rows, row_bytes):
            raise WireError(f"{tuple(data.shape)} bytes for {rows} rows of {row_bytes} bytes")
        marks: list[int | None] = [*digests] or [None] * len(spans)
        if again and not digests:
            first = 0
            for at, span in enumerate(spans):
                marks[at] = digest_of(np.ascontiguousarray(data[first : first + span.count]).reshape(-1))
                first += span.count
        return Claim(group, data, self.store.claim(session, spans, group, segment, marks), slots)

    def _keep(self, item: Admitted, shares: dict[str, Array], first: int) -> None:
        """Keep an upload's part of the shares, which begins at batch ``first``."""
        own = {
            batch.number: {name: shares[name][position] for name in item.upload.segments}
            for position, batch in enumerate(item.upload.batches, first)
        }
        self.store.keep(item.session, own, item.batch_bytes)
