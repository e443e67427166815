"""Sessions and batches: owners, the rule by which rows are spent, quotas, memory, time to live."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veil.errors import QuotaExceeded, RowReused, UnknownBatch, UnknownSession, WireError
from veil.kernels.cpu.siphash import digest_of
from veil.kernels.interface import Rows
from veil.server.engine import record_bytes
from veil.server.spending import SpentRows
from veil.server.store import Limits, Session, SessionStore
from veil.wire.messages import Span

LIMITS = Limits(
    max_sessions=3,
    max_sessions_per_owner=2,
    max_batches_per_session=4,
    memory_bytes=1000,
    session_ttl_s=10.0,
    batch_ttl_s=20.0,
)


class NoEngine:
    """What a store asks an engine for."""

    groups = 64
    model = SimpleNamespace(manifest=SimpleNamespace(segments={"body": 1, "head": 1}))


ENGINE: Any = NoEngine()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> SessionStore:
    return SessionStore(LIMITS, clock)


def keep(store: SessionStore, session: Session, number: int, nbytes: int = 100) -> None:
    store.reserve(session, [session.highest + 1], nbytes)
    store.keep(session, {number: {"body": np.arange(40, dtype=np.uint32).reshape(8, 5)}}, nbytes)


def claim(store: SessionStore, session: Session, span: Span, data: bytes | None, group: int = 0) -> Rows:
    (rows,) = store.claim(session, [span], group, "body", [None if data is None else digest_of(data)])
    return rows


def test_names_are_unguessable_and_bound_to_their_owner(store: SessionStore) -> None:
    one, two = store.open("a", ENGINE), store.open("b", ENGINE)
    assert one.name != two.name
    assert len(one.name) == 32
    assert store.find(one.name, "a") is one
    with pytest.raises(UnknownSession) as foreign:
        store.find(one.name, "b")
    with pytest.raises(UnknownSession) as absent:
        store.find("0" * 32, "b")
    assert str(foreign.value) == str(absent.value)


def test_without_tokens_there_is_no_quota_for_one_owner(store: SessionStore) -> None:
    for _ in range(3):
        store.open("", ENGINE)
    with pytest.raises(QuotaExceeded, match="the server has its most sessions"):
        store.open("", ENGINE)


def test_session_quotas(store: SessionStore) -> None:
    first = store.open("a", ENGINE)
    store.open("a", ENGINE)
    with pytest.raises(QuotaExceeded, match="your token"):
        store.open("a", ENGINE)
    store.open("b", ENGINE)
    with pytest.raises(QuotaExceeded, match=r"its most sessions \(3\)"):
        store.open("c", ENGINE)
    store.close(first)
    store.open("c", ENGINE)


def test_a_session_expires_without_use_and_says_so(store: SessionStore, clock: Clock) -> None:
    session = store.open("a", ENGINE)
    keep(store, session, 0)
    clock.now = 9.0
    store.find(session.name, "a")
    clock.now = 18.0
    store.expire()
    assert store.find(session.name, "a") is session
    clock.now = 28.5
    ended = threading.Event()
    session.on_close = ended.set
    store.expire()
    assert ended.is_set()
    assert store.count == store.batch_count == store.used_bytes == 0
    with pytest.raises(UnknownSession, match="expired after 10 s"):
        store.find(session.name, "a")


def test_a_session_with_batches_under_way_does_not_expire(store: SessionStore, clock: Clock) -> None:
    session = store.open("a", ENGINE)
    store.reserve(session, [session.highest + 1], 100)
    clock.now = 100.0
    store.expire()
    assert store.count == 1


def test_batches_expire(store: SessionStore, clock: Clock) -> None:
    session = store.open("a", ENGINE)
    keep(store, session, 0)
    clock.now = 20.5
    with pytest.raises(UnknownBatch, match="expired after 20 s"):
        claim(store, session, Span(0, 0, 1), b"x")
    store.touch(session)
    store.expire()
    assert store.batch_count == store.used_bytes == 0


def test_batch_and_memory_quotas(store: SessionStore) -> None:
    session = store.open("a", ENGINE)
    for number in range(4):
        keep(store, session, number)
    with pytest.raises(QuotaExceeded, match=r"4 batches of rows wait and 1 more .* use a shorter prompt or a smaller pool"):
        store.reserve(session, [session.highest + 1], 1)
    other = store.open("b", ENGINE)
    with pytest.raises(QuotaExceeded, match=r"memory for them, .* try again later"):
        store.reserve(other, [other.highest + 1], 601)
    with pytest.raises(QuotaExceeded, match=r"2 more batches of rows take 1.0 MiB .* ask its operator for more"):
        store.reserve(other, [other.highest + 1, other.highest + 2], 1 << 20)
    store.reserve(other, [other.highest + 1], 600)
    assert store.used_bytes == 1000
    store.unreserve(other, 1, 600)
    store.release(session, [0, 1, 77])
    assert store.used_bytes == 200
    store.close(session)
    assert store.used_bytes == 0
    with pytest.raises(UnknownSession):
        store.reserve(session, [session.highest + 1], 1)


def test_a_batch_that_is_ready_after_its_session_was_closed_is_dropped(store: SessionStore) -> None:
    session = store.open("a", ENGINE)
    store.reserve(session, [session.highest + 1], 100)
    store.close(session)
    store.keep(session, {0: {"body": np.zeros(1, dtype=np.uint32)}}, 100)
    assert session.batches == {}
    assert store.used_bytes == 0


# The one rule by which rows are spent -----------------------------------------------------------------------------------


def test_a_row_is_answered_again_and_another_is_refused(store: SessionStore) -> None:
    session = store.open("a", ENGINE)
    keep(store, session, 7)
    shares = session.batches[7].shares["body"]
    rows = claim(store, session, Span(7, 2, 3), b"rows")
    assert rows.material is shares and (rows.first, rows.count) == (2, 3)
    again = claim(store, session, Span(7, 2, 3), b"rows")
    assert again.material is shares and (again.first, again.count) == (2, 3)
    claim(store, session, Span(7, 2, 3), b"another group's", group=1)
    for data in (b"swor", b"", b"rows ", None):
        with pytest.raises(RowReused, match="rows from 2 of batch 7 were used before"):
            claim(store, session, Span(7, 2, 3), data)
    with pytest.raises(UnknownBatch, match="not prepared for the head"):
        store.claim(session, [Span(7, 5, 1)], 0, "head", [digest_of(b"row")])
    with pytest.raises(UnknownBatch, match="batch 8 is not prepared"):
        claim(store, session, Span(8, 0, 1), b"row")


@pytest.mark.parametrize("span", [Span(7, 0, 1), Span(7, 2, 2), Span(7, 2, 4), Span(7, 3, 1), Span(7, 4, 2), Span(7, 0, 8)])
def test_spans_that_touch_used_rows_otherwise_are_refused(store: SessionStore, span: Span) -> None:
    """Also rows that were passed over: they could be a reordered request's, and the server keeps no list of gaps."""
    session = store.open("a", ENGINE)
    keep(store, session, 7)
    claim(store, session, Span(7, 2, 3), b"rows")
    with pytest.raises(RowReused):
        claim(store, session, span, b"rows")
    assert claim(store, session, Span(7, 5, 3), b"rest").first == 5


def test_what_cannot_come_twice_is_never_answered_again(store: SessionStore) -> None:
    session = store.open("a", ENGINE)
    keep(store, session, 7)
    claim(store, session, Span(7, 0, 2), None)
    for data in (None, b"rows"):
        with pytest.raises(RowReused):
            claim(store, session, Span(7, 0, 2), data)


@pytest.mark.parametrize("second", [[Span(8, 0, 1)], [Span(7, 7, 2)], [Span(7, 0, 0)], [Span(7, -1, 1)], [Span(7, 3, -1)]])
def test_a_claim_that_is_refused_spends_nothing(store: SessionStore, second: list[Span]) -> None:
    session = store.open("a", ENGINE)
    keep(store, session, 7)
    spans = [Span(7, 0, 2), *second]
    with pytest.raises((UnknownBatch, WireError)):
        store.claim(session, spans, 0, "body", [digest_of(b"a"), digest_of(b"b")])
    assert claim(store, session, Span(7, 0, 2), b"other").count == 2


def test_spans_of_one_claim_are_in_order(store: SessionStore) -> None:
    session = store.open("a", ENGINE)
    for number in (7, 8):
        keep(store, session, number)
    spans: Sequence[Span] = [Span(8, 1, 2), Span(7, 0, 4), Span(8, 3, 1), Span(7, 4, 4)]
    found = store.claim(session, spans, 0, "body", [digest_of(b"1"), digest_of(b"2"), digest_of(b"3"), digest_of(b"4")])
    assert [(rows.first, rows.count) for rows in found] == [(1, 2), (0, 4), (3, 1), (4, 4)]
    again = store.claim(session, spans, 0, "body", [digest_of(b"1"), digest_of(b"2"), digest_of(b"3"), digest_of(b"4")])
    assert [(rows.first, rows.count) for rows in again] == [(rows.first, rows.count) for rows in found]
    with pytest.raises(RowReused):
        store.claim(session, [Span(8, 5, 1), Span(8, 4, 1)], 0, "body", [digest_of(b"1"), digest_of(b"2")])


def test_no_order_of_claims_gives_a_row_two_sets_of_bytes(store: SessionStore) -> None:
    """3,000 random claims, some of them resends: for each group and row at most one digest is ever answered."""
    draw, session = np.random.default_rng(3), store.open("a", ENGINE)
    for number in range(3):
        keep(store, session, number)
    answered: dict[tuple[int, int, int], bytes] = {}
    past: list[tuple[Span, bytes, int]] = []
    taken = resent = 0
    for _ in range(3000):
        if past and draw.integers(2):
            span, data, group = past[int(draw.integers(len(past)))]
            resent += 1
        else:
            number, first, count, group = (int(draw.integers(most)) for most in (3, 8, 4, 2))
            span, data = Span(number, first, count + 1), draw.bytes(4)
        try:
            claim(store, session, span, data, group)
        except (RowReused, WireError):
            continue
        taken += 1
        past.append((span, data, group))
        for row in range(span.first, span.first + span.count):
            assert answered.setdefault((group, span.batch, row), data) == data
    assert taken > 100 and resent > 1000 and len(answered) > 20


def test_threads_that_claim_one_row_get_it_once(store: SessionStore) -> None:
    session = store.open("a", ENGINE)
    keep(store, session, 0)
    start, got = threading.Barrier(8), []

    def take(which: int) -> None:
        start.wait(30)
        for row in range(8):
            try:
                claim(store, session, Span(0, row, 1), bytes([which]))
                got.append(row)
            except RowReused:
                continue

    threads = [threading.Thread(target=take, args=(which,)) for which in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got) == sorted(set(got))
    assert 7 in got


def test_a_batch_is_counted_with_its_records() -> None:
    """What is noted of each group and row: a count and a digest."""
    assert record_bytes(64, 10) == 64 * 10 * 12 >= SpentRows(10, 64).nbytes
    assert record_bytes(0, 10) == record_bytes(64, 0) == 0


def test_records_are_not_larger_than_they_are_counted(store: SessionStore) -> None:
    """A client that claims row by row makes as many records as it can."""
    import tracemalloc

    rows, groups = 64, ENGINE.groups
    session = SessionStore(Limits()).open("", ENGINE)
    other: Any = SessionStore(Limits())
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    other.keep(session, {0: {"body": np.zeros((rows, 1), np.uint32)}}, 0)
    for group in range(groups):
        for row in range(rows):
            claim(other, session, Span(0, row, 1), bytes([group, row]), group)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < record_bytes(rows, groups)
