"""A stream that goes over to another session of its owner: every request is answered from the session that it names."""

from __future__ import annotations

import numpy as np
import pytest

from veil.bench.load_shapes import random_model
from veil.kernels.backend import kernels_for
from veil.kernels.cpu.siphash import digest_of
from veil.server.admission import Admission
from veil.server.batch_table import BatchTable
from veil.server.engine import Claim, Engine
from veil.server.metrics import Metrics
from veil.server.row_io import BATCH, COLUMNS, COUNT, DIGEST, FIRST, RECEIVED, SEQUENCE
from veil.server.rows import RowAnswers
from veil.server.store import Limits, Session, SessionStore
from veil.wire import veil_pb2 as pb
from veil.wire.envelope import seal

BATCH_ID = 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TwoSessions:
    """Two sessions of one owner, with a batch of the same number each: shares of ones, and of twos. The first is seated."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.clock = engine, Clock()
        self.store = SessionStore(Limits(session_ttl_s=10.0), self.clock)
        self.store.tables[engine] = BatchTable(engine.kernels.address)  # so that sessions have numbers
        self.sessions = [self._session(shares) for shares in (1, 2)]
        self.stream = RowAnswers(Admission(self.store), None, Metrics(), "owner", lambda: None)  # type: ignore[arg-type]
        self.stream.adopt(self.sessions[0].name)

    def _session(self, value: int) -> Session:
        session, params = self.store.open("owner", self.engine), self.engine.model.params
        shares = np.full((params.T, self.engine.model.manifest.segments["body"]), value, np.uint32)
        self.store.reserve(session, [BATCH_ID], 100)
        self.store.keep(session, {BATCH_ID: {"body": shares}}, 100)
        return session

    @property
    def row(self) -> bytes:
        return bytes(self.engine.place(0)[2])

    def alone(self, session: Session, first: int) -> Claim:
        """A request that is read by itself."""
        asked = pb.EvaluateRequest(session=session.name, sequence=1, spans=[BATCH_ID, first, 1], rows=self.row)
        return self.stream.ask(seal(asked))[1]

    def taken_apart(self, first: int) -> Claim | None:
        """One that was taken apart because it names the session of the stream's ticket."""
        own = [0] * COLUMNS
        own[BATCH], own[FIRST], own[COUNT], own[SEQUENCE], own[RECEIVED] = BATCH_ID, first, 1, 1, len(self.row)
        own[DIGEST] = int(np.uint64(digest_of(self.row)).astype(np.int64))
        found = self.stream.ask_usual(own, np.frombuffer(self.row, np.uint8)[None])
        return None if found is None else found[1]


def value_of(claim: Claim | None) -> int:
    assert claim is not None
    return int(claim.shares[0].material[0, 0])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.build(random_model("tiny"), kernels_for("cpu"))


@pytest.fixture
def two(engine: Engine) -> TwoSessions:
    return TwoSessions(engine)


def test_a_request_of_the_first_session_is_not_answered_from_the_second(two: TwoSessions) -> None:
    first, second = two.sessions
    assert value_of(two.alone(second, 0)) == 2
    assert two.taken_apart(1) is None, "left to be read by itself, which finds the session that it names"
    assert value_of(two.alone(first, 1)) == 1


def test_after_its_return_the_stream_takes_requests_apart_again(two: TwoSessions) -> None:
    first, second = two.sessions
    two.alone(second, 0)
    two.alone(first, 1)
    assert value_of(two.taken_apart(2)) == 1


def test_rounds_are_of_the_session_that_its_ticket_named(two: TwoSessions) -> None:
    first, second = two.sessions
    two.alone(second, 0)
    assert two.stream.joins(two.engine) == first.number != second.number
    two.clock.now = 8.0
    two.stream.answered(rows=1, received=10, sent=10)
    two.clock.now = 12.0
    two.store.expire()
    assert not first.closed and second.closed, "what rounds answer keeps the first one's session open"
