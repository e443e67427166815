"""The online step for one stream of rows, whatever carries it: find the session, claim the rows, multiply, reply."""

from __future__ import annotations

from collections.abc import Callable

from veil.errors import WireError
from veil.server.budget import RowBudget
from veil.server.engine import Claim
from veil.server.logs import alias, event
from veil.server.metrics import Metrics
from veil.server.scheduler import OnlineTurns
from veil.server.store import Session, SessionStore
from veil.wire import codec
from veil.wire import veil_pb2 as pb
from veil.wire.eager import NOTHING
from veil.wire.envelope import seal, unseal
from veil.wire.messages import rows_of

_TELL_BYTES = 1 << 18
"""Bytes that move between two updates of the metrics."""


class RowStream:
    """Answers sealed requests of one stream; a session's new stream ends its older one through ``cancel``."""

    def __init__(
        self,
        store: SessionStore,
        turns: OnlineTurns,
        metrics: Metrics,
        owner: str,
        cancel: Callable[[], object],
        budget: RowBudget | None = None,
    ) -> None:
        self._store, self._turns, self._metrics = store, turns, metrics
        self._owner = owner
        self._budget = budget
        self._cancel = cancel
        self._session: Session | None = None
        self._rows = self._received = self._sent = 0
        self.meanwhile = NOTHING
        """Steps, of some µs each, that make the next answer quicker; to take while the request for it is awaited."""

    def answer(self, data: bytes) -> bytes:
        """The sealed reply; raises the `VeilError` that ends the stream."""
        request = unseal(data, pb.EvaluateRequest)
        session = self._find(request.session)
        if request.release:
            self._store.release(session, request.release)
        claim = self._claim(session, request)
        rows = self._turns.answer(session.engine, claim)
        self.meanwhile = session.engine.prefetch_after(request.group)
        reply = seal(pb.EvaluateReply(sequence=request.sequence, rows=rows))
        self._received += len(data)
        self._sent += len(reply)
        self._rows += claim.count
        if self._received + self._sent > _TELL_BYTES:
            self._tell()
        return reply

    def _claim(self, session: Session, request: pb.EvaluateRequest) -> Claim:
        spans, manifest = codec.spans_from(request.spans), session.engine.model.manifest
        if request.group >= len(manifest.groups):
            raise WireError(f"group {request.group} is not one of {len(manifest.groups)}")
        group = manifest.groups[request.group]
        data = codec.rows_from(request.rows, rows_of(spans), group.width, group.input_bits)
        if self._budget is not None:
            self._budget.spend(self._owner, session.engine, request.group, len(data))
        claim: Claim = session.engine.claim(session, request.group, spans, data, request.slots or group.rows)
        return claim

    def adopt(self, name: str) -> Session:
        """Make a session this stream's; `UnknownSession` if it is not its owner's."""
        session = self._store.find(name, self._owner)
        before, session.on_close = session.on_close, self._cancel
        if before is not None and before != self._cancel:
            before()
        self._session = session
        return session

    def end(self) -> None:
        """Say in the metrics and the log that the stream ended."""
        self._tell()
        if self._session is not None:
            event("evaluated", session=alias(self._session.name), rows=self._rows)

    def _tell(self) -> None:
        self._metrics.moved(self._received, self._sent)
        self._received = self._sent = 0

    def _find(self, name: str) -> Session:
        session = self._session
        if session is None or session.name != name or session.closed:
            return self.adopt(name)
        self._store.touch(session)
        return session
