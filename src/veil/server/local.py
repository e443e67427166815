"""A server in the client's own process: one engine and its sessions behind the calls of a transport."""

from __future__ import annotations

from collections.abc import Sequence

from veil.kernels.interface import Array, Rows
from veil.server.admission import Admission
from veil.server.engine import Engine
from veil.server.store import Session, SessionStore
from veil.wire.messages import BatchUpload, Span, Upload


class LocalServer:
    """An engine as a `veil.wire.transport.Transport`, with a store of its own unless one is given."""

    batch_ttl_s = float("inf")

    def __init__(self, engine: Engine, store: SessionStore | None = None) -> None:
        self.engine = engine
        self.store = store or SessionStore()
        self.admission = Admission(self.store, one_thread=True)
        self._newest: Session | None = None

    def open(self) -> str:
        """A new session's name, unguessable."""
        return self.store.open("", self.engine).name

    def close(self, session: str) -> None:
        """Forget a session and everything that it prepared."""
        self.store.close(self.store.find(session))

    def stop(self) -> None:
        """Nothing: no call of this process waits for anybody."""

    def prepare(self, session: str, batches: Sequence[BatchUpload], segments: Sequence[str]) -> None:
        """Make the shares of some batches; every check comes before any work. See `Admission.admit`."""
        own = self.store.find(session)
        (error,) = self.admission.make([self.admission.admit(own, Upload(tuple(batches), tuple(segments)))])
        if error is not None:
            raise error

    def evaluate(self, session: str, group: int, spans: Sequence[Span], data: Array, slots: int) -> Array:
        """``W·b - h`` for packed rows [R, bytes] uint8 of one group, one row of a batch each: packed results [R, bytes].

        Rows cannot come twice.
        """
        own = self._newest
        if own is None or own.name != session or own.closed:
            own = self._newest = self.store.find(session)
        return self.engine.answer([self.admission.claim(own, group, spans, data, slots, again=False)])[0]

    def release(self, session: str, batches: Sequence[int]) -> None:
        """Forget batches that the client will not use again."""
        self.store.release(self.store.find(session), batches)

    def claim_row(self, session: str, groups: Sequence[int], span: Span) -> dict[str, Rows]:
        """Spend one row for all these groups at once, where rows cannot come twice; its shares by segment."""
        own, found = self.store.find(session), {}
        for group in groups:
            segment = self.engine.place(group)[0]
            found[segment] = self.store.claim(own, [span], group, segment, [None])[0]
        return found
