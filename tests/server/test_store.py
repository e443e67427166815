"""Sessions and masks: owners, quotas, memory, time to live."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from veil.errors import MaskReused, QuotaExceeded, UnknownMask, UnknownSession
from veil.server.store import Limits, Session, SessionStore, mask_bytes

LIMITS = Limits(
    max_sessions=3,
    max_sessions_per_owner=2,
    max_masks_per_session=4,
    memory_bytes=1000,
    session_ttl_s=10.0,
    mask_ttl_s=20.0,
)


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
    store.reserve(session, 1, nbytes)
    store.keep(session, {number: {"body": np.arange(4, dtype=np.uint32)}}, nbytes)


def test_names_are_unguessable_and_bound_to_their_owner(store: SessionStore) -> None:
    one, two = store.open("a", None), store.open("b", None)
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
        store.open("", None)
    with pytest.raises(QuotaExceeded, match="the server has its most sessions"):
        store.open("", None)


def test_session_quotas(store: SessionStore) -> None:
    first = store.open("a", None)
    store.open("a", None)
    with pytest.raises(QuotaExceeded, match="your token"):
        store.open("a", None)
    store.open("b", None)
    with pytest.raises(QuotaExceeded, match=r"its most sessions \(3\)"):
        store.open("c", None)
    store.close(first)
    store.open("c", None)


def test_a_session_expires_without_use_and_says_so(store: SessionStore, clock: Clock) -> None:
    session = store.open("a", None)
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
    assert store.count == store.mask_count == store.used_bytes == 0
    with pytest.raises(UnknownSession, match="expired after 10 s"):
        store.find(session.name, "a")


def test_a_session_with_masks_under_way_does_not_expire(store: SessionStore, clock: Clock) -> None:
    session = store.open("a", None)
    store.reserve(session, 1, 100)
    clock.now = 100.0
    store.expire()
    assert store.count == 1


def test_masks_expire(store: SessionStore, clock: Clock) -> None:
    session = store.open("a", None)
    keep(store, session, 0)
    clock.now = 20.5
    with pytest.raises(UnknownMask, match="expired after 20 s"):
        store.claim(session, 0, 0, "body", b"x")
    store.touch(session)
    store.expire()
    assert store.mask_count == store.used_bytes == 0


def test_mask_and_memory_quotas(store: SessionStore) -> None:
    session = store.open("a", None)
    for number in range(4):
        keep(store, session, number)
    with pytest.raises(QuotaExceeded, match="4 masks wait and 1 more"):
        store.reserve(session, 1, 1)
    other = store.open("b", None)
    with pytest.raises(QuotaExceeded, match=r"memory for masks, .* try again later"):
        store.reserve(other, 1, 601)
    with pytest.raises(QuotaExceeded, match=r"2 more masks take 1.0 MiB .* ask its operator for more"):
        store.reserve(other, 2, 1 << 20)
    store.reserve(other, 1, 600)
    assert store.used_bytes == 1000
    store.unreserve(other, 1, 600)
    store.release(session, [0, 1, 77])
    assert store.used_bytes == 200
    store.close(session)
    assert store.used_bytes == 0
    with pytest.raises(UnknownSession):
        store.reserve(session, 1, 1)


def test_a_mask_that_is_ready_after_its_session_was_closed_is_dropped(store: SessionStore) -> None:
    session = store.open("a", None)
    store.reserve(session, 1, 100)
    store.close(session)
    store.keep(session, {0: {"body": np.zeros(1, dtype=np.uint32)}}, 100)
    assert session.masks == {}
    assert store.used_bytes == 0


def test_a_row_is_answered_again_and_another_is_refused(store: SessionStore) -> None:
    session = store.open("a", None)
    keep(store, session, 7)
    share = store.claim(session, 7, 0, "body", b"row")
    assert store.claim(session, 7, 0, "body", b"row") is share
    store.claim(session, 7, 1, "body", b"another group's")
    with pytest.raises(MaskReused, match="other bytes"):
        store.claim(session, 7, 0, "body", b"wor")
    with pytest.raises(UnknownMask, match="not prepared for the head"):
        store.claim(session, 7, 0, "head", b"row")
    with pytest.raises(UnknownMask):
        store.claim(session, 8, 0, "body", b"row")


def test_a_mask_is_counted_with_its_records() -> None:
    assert mask_bytes(1000, 10) == 4000 + 1280
