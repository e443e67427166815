"""Sessions and the batches of rows that wait in them: who owns what, how much memory it takes, how long it is kept."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from veil.errors import QuotaExceeded, ServerUnreachable, UnknownBatch, UnknownSession, WireError
from veil.kernels.interface import Array, Rows
from veil.server.batch_table import BatchTable
from veil.server.engine import Engine
from veil.server.spending import SpentRows
from veil.wire.messages import Span

R = TypeVar("R")

_REMEMBERED = 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What sessions may hold and for how long; the defaults are those of an engine in the client's own process."""

    max_sessions: int = 1 << 30
    max_sessions_per_owner: int = 1 << 30
    max_batches_per_session: int = 1 << 30
    memory_bytes: int = 1 << 62
    session_ttl_s: float = float("inf")
    batch_ttl_s: float = float("inf")


@dataclass(eq=False)
class Batch:
    """A prepared batch: its shares h [T, slots] by segment, which rows came for each group, and its size."""

    shares: dict[str, Array]
    expires: float
    nbytes: int
    spent: SpentRows
    place: int = -1
    """In its engine's table, where there is one."""


@dataclass(eq=False)
class Session:
    """One client's batches.

    ``batches``, ``waiting``, ``nbytes`` and ``closed`` change under the store's lock; whoever reads one of them without it
    reads it once, as is ``highest``. No lock guards ``touched``, a time that any
    call writes, nor ``on_close``, which the session's newest stream of rows replaces.
    """

    name: str
    owner: str
    engine: Engine
    touched: float
    highest: int = -1
    batches: dict[int, Batch] = field(default_factory=dict)
    waiting: int = 0
    nbytes: int = 0
    closed: bool = False
    on_close: Callable[[], object] | None = None
    number: int = -1
    """Its name in its engine's table, where there is one."""

    ticket: str = field(default_factory=lambda: secrets.token_hex(16))


class SessionStore:
    """All sessions of a server, in all bundles. Thread safe; ``clock`` counts seconds."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._lock = threading.Lock()
        self.sessions: dict[str, Session] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._used_bytes = 0
        self._draining = False
        self.tables: dict[Engine, BatchTable] = {}
        """Engines' batches for kernels that claim rows without the interpreter; set before the first session opens."""

    @property
    def used_bytes(self) -> int:
        """Bytes that the batches of all sessions hold or are promised."""
        return self._used_bytes

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self.sessions)

    @property
    def batch_count(self) -> int:
        """Prepared batches of all sessions."""
        with self._lock:
            return sum(len(session.batches) for session in self.sessions.values())

    def open(self, owner: str, engine: Engine) -> Session:
        """A new session with an unguessable name; `QuotaExceeded` when there are as many as allowed.

        ``owner`` is empty for everybody where nobody shows a token; then the limit for one owner does not hold.
        """
        self.expire()
        limits = self.limits
        with self._lock:
            if self._draining:
                raise ServerUnreachable("the server takes no new sessions; try again")
            if len(self.sessions) >= limits.max_sessions:
                raise QuotaExceeded(
                    f"the server has its most sessions ({limits.max_sessions}); close one, or try again later"
                )
            mine = sum(1 for session in self.sessions.values() if session.owner == owner)
            if owner and mine >= limits.max_sessions_per_owner:
                raise QuotaExceeded(f"your token has its most sessions ({mine}); close one, or try again later")
            name = secrets.token_hex(16)
            session = self.sessions[name] = Session(name, owner, engine, self._clock())
            if (table := self.tables.get(engine)) is not None:
                session.number = table.open()
            return session

    def drain(self) -> None:
        """Open no more sessions."""
        self._draining = True

    def least_used(self, engines: Sequence[Engine]) -> Engine:
        """Of some engines the one with the fewest sessions."""
        if len(engines) == 1:
            return engines[0]
        with self._lock:
            used = Counter(id(session.engine) for session in self.sessions.values())
        return min(engines, key=lambda engine: used[id(engine)])

    def find(self, name: str, owner: str = "") -> Session:
        """The session of this name if it is ``owner``'s; `UnknownSession`, which does not say whose it is."""
        with self._lock:
            session = self.sessions.get(name)
            if session is None or not hmac.compare_digest(session.owner.encode(), owner.encode()):
                if name in self._expired:
                    raise UnknownSession(
                        f"the session expired after {self.limits.session_ttl_s:g} s without use; "
                        "open a new one with fresh keys"
                    )
                raise UnknownSession("the server does not know this session; open a new one with fresh keys")
            session.touched = self._clock()
            return session

    def admit(self, name: str, ticket: str) -> Session:
        """The session of this name for who has its ticket; `UnknownSession` for anybody else."""
        with self._lock:
            session = self.sessions.get(name)
            if session is None or not hmac.compare_digest(session.ticket.encode(), ticket.encode()):
                raise UnknownSession("the server does not know this session; open a new one with fresh keys")
            session.touched = self._clock()
            return session

    def touch(self, session: Session) -> None:
        """Note that a session is in use."""
        session.touched = self._clock()

    def close(self, session: Session) -> None:
        """Forget a session and everything in it."""
        with self._lock:
            self._forget(session)
        self._notify([session])

    def expire(self) -> None:
        """Forget sessions and batches whose time is over."""
        now, limits = self._clock(), self.limits
        over = []
        with self._lock:
            for session in list(self.sessions.values()):
                if not session.waiting and now - session.touched > limits.session_ttl_s:
                    self._forget(session)
                    over.append(session)
                    self._expired[session.name] = None
                    while len(self._expired) > _REMEMBERED:
                        self._expired.popitem(last=False)
                    continue
                late = [number for number, batch in session.batches.items() if batch.expires < now]
                self._drop(session, late)
        self._notify(over)

    def check_room(self, session: Session, batches: int, nbytes: int) -> None:
        """Refuse what `reserve` would refuse now."""
        with self._lock:
            self._refuse(session, batches, nbytes)

    def reserve(self, session: Session, numbers: Sequence[int], nbytes: int) -> None:
        """Promise memory for an upload of these batches before it is made; the order of uploads is set here.

        `QuotaExceeded` names the limit that it would pass; numbers that do not grow raise `WireError`.
        """
        with self._lock:
            if any(number <= before for before, number in zip([session.highest, *numbers], numbers, strict=False)):
                raise WireError("batch numbers do not grow")
            self._refuse(session, len(numbers), nbytes)
            self._used_bytes += nbytes
            session.nbytes += nbytes
            session.waiting += len(numbers)
            session.highest = max([session.highest, *numbers])

    def unreserve(self, session: Session, batches: int, nbytes: int) -> None:
        """Take back a promise that `reserve` made."""
        with self._lock:
            session.waiting -= batches
            self._free(session, nbytes)

    def keep(self, session: Session, shares: dict[int, dict[str, Array]], nbytes: int) -> None:
        """Keep an upload's batches, of ``nbytes`` each, that memory was promised for: all, or none if this raises."""
        expires, groups = self._clock() + self.limits.batch_ttl_s, session.engine.groups
        batches = {
            number: Batch(share, expires, nbytes, SpentRows(groups, max(map(len, share.values()), default=0)))
            for number, share in shares.items()
        }
        segments = session.engine.model.manifest.segments
        with self._lock:
            if not session.closed:
                session.batches.update(batches)
                if (table := self.tables.get(session.engine)) is not None:
                    for number, own in batches.items():
                        own.place = table.put(session.number, number, own.shares, own.spent, segments, expires)
            session.waiting -= len(batches)

    def release(self, session: Session, batches: Iterable[int]) -> None:
        """Forget some of a session's batches; numbers that it does not have are passed over."""
        with self._lock:
            self._drop(session, {number for number in batches if number in session.batches})

    def claim(
        self, session: Session, spans: Sequence[Span], group: int, segment: str, digests: Sequence[int | None]
    ) -> list[Rows]:
        """The shares of a batch's segment for these rows of a group and no others: the one rule by which rows are spent.

        ``digests`` are those of the spans' bytes, or None each where nothing can come twice. Raises `UnknownBatch`,
        `WireError` for rows that no batch has, and `RowReused` when other bytes came before.
        """
        now = self._clock()
        with self._lock:
            if len(spans) == 1:
                batch = self._batch(session, spans[0], segment, now)
                batch.spent.claim(group, spans[0], digests[0])
                return [Rows(batch.shares[segment], spans[0].first, spans[0].count)]
            found = [self._batch(session, span, segment, now) for span in spans]
            for span, batch, digest in zip(spans, found, digests, strict=True):
                batch.spent.claim(group, span, digest)
            return [Rows(batch.shares[segment], span.first, span.count) for span, batch in zip(spans, found, strict=True)]

    def in_table(self, engine: Engine, use: Callable[[BatchTable, float], R]) -> R:
        """What ``use(table, now)`` gives, with an engine's, which spends rows as `claim` does, while nobody else does."""
        table = self.tables[engine]
        with self._lock:
            return use(table, self._clock())

    def _batch(self, session: Session, span: Span, segment: str, now: float) -> Batch:
        """The batch that has these rows."""
        number, first, count = span.batch, span.first, span.count
        batch = session.batches.get(number)
        if batch is None or segment not in batch.shares:
            raise UnknownBatch(f"batch {number} is not prepared for the {segment} of the model")
        if batch.expires < now:
            raise UnknownBatch(f"batch {number} expired after {self.limits.batch_ttl_s:g} s; prepare fresh ones")
        if not (first >= 0 and count > 0 and first + count <= len(batch.shares[segment])):
            raise WireError(f"rows {first} to {first + count} are not those of a batch")
        return batch

    def _refuse(self, session: Session, batches: int, nbytes: int) -> None:
        limits, held = self.limits, len(session.batches) + session.waiting
        if session.closed:
            raise UnknownSession("the session was closed")
        if held + batches > limits.max_batches_per_session:
            raise QuotaExceeded(
                f"{held} batches of rows wait and {batches} more were asked for; the server allows a session "
                f"{limits.max_batches_per_session}: use a shorter prompt or a smaller pool"
            )
        if self._used_bytes + nbytes > limits.memory_bytes:
            raise QuotaExceeded(
                f"{batches} more batches of rows take {_mib(nbytes)} of the server's memory for them, where "
                f"{_mib(limits.memory_bytes - self._used_bytes)} of {_mib(limits.memory_bytes)} are free; "
                + ("try again later, or with" if nbytes <= limits.memory_bytes else "ask its operator for more, or use")
                + " a smaller pool"
            )

    def _forget(self, session: Session) -> None:
        if self.sessions.pop(session.name, None) is not None:
            session.closed = True
            self._drop(session, list(session.batches))
            self._free(session, session.nbytes)
            if (table := self.tables.get(session.engine)) is not None:
                table.close(session.number)

    def _drop(self, session: Session, numbers: Iterable[int]) -> None:
        table = self.tables.get(session.engine)
        for number in numbers:
            batch = session.batches.pop(number)
            self._free(session, batch.nbytes)
            if table is not None:
                table.drop(session.number, batch.place, batch.shares)

    def _free(self, session: Session, nbytes: int) -> None:
        nbytes = min(nbytes, session.nbytes)
        session.nbytes -= nbytes
        self._used_bytes -= nbytes

    @staticmethod
    def _notify(sessions: Iterable[Session]) -> None:
        for session in sessions:
            if session.on_close is not None:
                session.on_close()


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):.1f} MiB"
