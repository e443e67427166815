"""The online step for one stream of rows, whatever carries it: find the session, claim the rows, multiply, reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from veil.errors import WireError
from veil.network.busy_poll import NOTHING
from veil.server.admission import Admission
from veil.server.arrivals import U8
from veil.server.budget import RowBudget
from veil.server.engine import Claim, Engine
from veil.server.logs import alias, event
from veil.server.metrics import Metrics
from veil.server.row_io import BATCH, COUNT, DIGEST, FIRST, GROUP, RECEIVED, SEQUENCE, SLOTS
from veil.server.store import Session
from veil.wire import codec
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import sealed_parts, unseal
from veil.wire.messages import Span, rows_of

_TELL_BYTES = 1 << 18
"""Bytes that move between two updates of the metrics."""


_WORDS = 1 << 64


class Products(Protocol):
    """What multiplies rows for a thread that waits; see `veil.server.row_loop.RowLoop`."""

    def answer(self, engine: Engine, claim: Claim, flow: str) -> bytes:
        """The packed results of a claim; raises what its product did."""


class RowAnswers:
    """Answers sealed requests of one stream; a session's new stream ends its older one through ``cancel``."""

    def __init__(
        self,
        admission: Admission,
        loop: Products,
        metrics: Metrics,
        owner: str,
        cancel: Callable[[], object],
        budget: RowBudget | None = None,
    ) -> None:
        self._admission, self._store = admission, admission.store
        self._loop, self._metrics = loop, metrics
        self._owner = owner
        self._budget = budget
        self._cancel = cancel
        self._session: Session | None = None
        self._seated: Session | None = None
        """The first one, which its ticket named: its messages alone may come taken apart, or be answered in rounds."""

        self._rows = self._received = self._sent = self._sequence = 0
        self.meanwhile = NOTHING
        """Steps, of some µs each, that make the next answer quicker; to take while the request for it is awaited."""

    def answer(self, data: bytes) -> bytes:
        """The sealed reply, for a thread that waits for it; raises the `VeilError` that ends the stream."""
        engine, claim, flow = self.ask(data)
        return self.reply(claim, self._loop.answer(engine, claim, flow))

    def ask(self, data: bytes) -> tuple[Engine, Claim, str]:
        """What a sealed request asks for, its rows spent, and who asks; raises the `VeilError` that ends the stream."""
        request = unseal(data, pb.EvaluateRequest)
        session = self._find(request.session)
        if request.release:
            self._store.release(session, request.release)
        claim = self._claim(session, request)
        self._sequence = request.sequence
        self._received += len(data)
        return session.engine, claim, self._owner or session.name

    def joins(self, engine: Engine) -> int:
        """The number of its session in the store's table if rounds of an engine may answer it, else -1."""
        session = self._seated
        return -1 if session is None or session.engine is not engine or self._budget is not None else session.number

    @property
    def engine(self) -> Engine | None:
        """What answers the session that its ticket named; None where there is none yet."""
        return None if self._seated is None else self._seated.engine

    @property
    def flow(self) -> str:
        """Who asks."""
        return self._owner or self.name

    def answered(self, rows: int, received: int, sent: int) -> None:
        """Count what rounds answered."""
        self._received += received
        self._sent += sent
        self._rows += rows
        if self._seated is not None:
            self._store.touch(self._seated)
        if self._received + self._sent > _TELL_BYTES:
            self._tell()

    @property
    def name(self) -> str:
        """The name of the session that its ticket named; empty where there is none yet."""
        return "" if self._seated is None else self._seated.name

    def ask_usual(self, own: Sequence[int], rows: U8) -> tuple[Engine, Claim, str] | None:
        """As `ask` for a request of the session `name` that was taken apart before, with its rows [count, bytes].

        ``own`` has the columns of `veil.server.row_io`. None, and nothing is changed, where `ask` would refuse the form or
        has to find the session, because the last request was of another.
        """
        session, group, slots = self._seated, own[GROUP], own[SLOTS]
        if session is None or session is not self._session or session.closed or group >= session.engine.groups:
            return None
        engine, count = session.engine, own[COUNT]
        _, outputs, row_bytes = engine.place(group)
        if rows.shape != (count, row_bytes) or slots > outputs:
            return None
        self._store.touch(session)
        if self._budget is not None:
            self._budget.spend(self._owner, engine, group, count)
        spans, digests = [Span(own[BATCH], own[FIRST], count)], (own[DIGEST] % _WORDS,)
        claim = self._admission.claim(session, group, spans, rows, slots or outputs, digests=digests)
        self._sequence = own[SEQUENCE]
        self._received += own[RECEIVED]
        return engine, claim, self._owner or session.name

    def reply(self, claim: Claim, rows: bytes) -> bytes:
        """The sealed reply to what was asked last."""
        return b"".join(self.reply_parts(claim, [rows]))

    def reply_parts(self, claim: Claim, parts: Sequence[bytes]) -> list[bytes]:
        """As `reply`, for rows in parts and in as many, which are not joined."""
        self.look_ahead(claim)
        sealed = sealed_parts(_head_of(self._sequence, sum(map(len, parts))), parts)
        self.replied(claim, sum(map(len, sealed)))
        return sealed

    def replied(self, claim: Claim, nbytes: int) -> None:
        """Count a reply."""
        self._sent += nbytes
        self._rows += claim.count
        if self._received + self._sent > _TELL_BYTES:
            self._tell()

    def look_ahead(self, claim: Claim) -> None:
        """Have ``meanwhile`` prepare the request that follows this one."""
        session = self._session
        if session is not None:
            self.meanwhile = session.engine.prefetch_after(claim.group)

    def _claim(self, session: Session, request: pb.EvaluateRequest) -> Claim:
        spans, manifest = codec.spans_from(request.spans), session.engine.model.manifest
        if request.group >= len(manifest.groups):
            raise WireError(f"group {request.group} is not one of {len(manifest.groups)}")
        group = manifest.groups[request.group]
        data = codec.rows_from(request.rows, rows_of(spans), group.width, group.input_bits)
        if self._budget is not None:
            self._budget.spend(self._owner, session.engine, request.group, len(data))
        return self._admission.claim(session, request.group, spans, data, request.slots or group.rows)

    def adopt(self, name: str) -> Session:
        """Make a session this stream's; `UnknownSession` if it is not its owner's."""
        session = self._store.find(name, self._owner)
        before, session.on_close = session.on_close, self._cancel
        if before is not None and before != self._cancel:
            before()
        self._session = session
        if self._seated is None:
            self._seated = session
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


def _head_of(sequence: int, nbytes: int) -> bytes:
    """The bytes of an `EvaluateReply` before its rows, which are its last field."""
    head = bytearray(pb.EvaluateReply(sequence=sequence).SerializeToString())
    head.append(pb.EvaluateReply.ROWS_FIELD_NUMBER << 3 | 2)
    while nbytes > 127:
        head.append(nbytes & 127 | 128)
        nbytes >>= 7
    head.append(nbytes)
    return bytes(head)
