"""Sessions and the masks that wait in them: who owns what, how much memory it takes, and how long it is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.crypto.hint import PreparedKeys
from veil.errors import MaskReused, QuotaExceeded, UnknownMask, UnknownSession

U32 = NDArray[np.uint32]

_REMEMBERED = 1024
_RECORD_BYTES = 128  # of Python objects for each group that a mask was used for


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What sessions may hold and for how long; the defaults are those of an engine in the client's own process."""

    max_sessions: int = 1 << 30
    max_sessions_per_owner: int = 1 << 30
    max_masks_per_session: int = 1 << 30
    memory_bytes: int = 1 << 62
    session_ttl_s: float = float("inf")
    mask_ttl_s: float = float("inf")


@dataclass(eq=False)
class Mask:
    """A prepared mask: its shares h by segment, a digest of what came for each group, and its size."""

    shares: dict[str, U32]
    expires: float
    nbytes: int
    seen: dict[int, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Session:
    """One client's keys of the current epoch and its masks.

    ``keys``, ``masks``, ``waiting``, ``nbytes`` and ``closed`` change under the store's lock; whoever reads one of them
    without it reads it once. ``epoch``, ``used_sets`` and ``highest`` change under the lock of the engine's `admit`. No lock
    guards ``touched``, a time that any call writes, nor ``on_close``, which the session's newest stream of rows replaces.
    """

    name: str
    owner: str
    engine: Any
    touched: float
    epoch: int = -1
    keys: tuple[int, PreparedKeys] | None = None
    used_sets: set[int] = field(default_factory=set)
    highest: int = -1
    masks: dict[int, Mask] = field(default_factory=dict)
    waiting: int = 0
    nbytes: int = 0
    closed: bool = False
    on_close: Callable[[], object] | None = None
    ticket: str = field(default_factory=lambda: secrets.token_hex(16))


class SessionStore:
    """All sessions of a server, in all bundles. Thread safe; ``clock`` counts seconds."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that keys and masks of all sessions hold or are promised."""
        return self._used_bytes

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def mask_count(self) -> int:
        """Prepared masks of all sessions."""
        with self._lock:
            return sum(len(session.masks) for session in self._sessions.values())

    def open(self, owner: str, engine: Any) -> Session:
        """A new session with an unguessable name; `QuotaExceeded` when there are as many as allowed.

        ``owner`` is empty for everybody where nobody shows a token; then the limit for one owner does not hold.
        """
        self.expire()
        limits = self.limits
        with self._lock:
            if len(self._sessions) >= limits.max_sessions:
                raise QuotaExceeded(
                    f"the server has its most sessions ({limits.max_sessions}); close one, or try again later"
                )
            mine = sum(1 for session in self._sessions.values() if session.owner == owner)
            if owner and mine >= limits.max_sessions_per_owner:
                raise QuotaExceeded(f"your token has its most sessions ({mine}); close one, or try again later")
            name = secrets.token_hex(16)
            session = self._sessions[name] = Session(name, owner, engine, self._clock())
            return session

    def find(self, name: str, owner: str = "") -> Session:
        """The session of this name if it is ``owner``'s; `UnknownSession`, which does not say whose it is."""
        with self._lock:
            session = self._sessions.get(name)
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
            session = self._sessions.get(name)
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
        """Forget sessions and masks whose time is over."""
        now, limits = self._clock(), self.limits
        over = []
        with self._lock:
            for session in list(self._sessions.values()):
                if not session.waiting and now - session.touched > limits.session_ttl_s:
                    self._forget(session)
                    over.append(session)
                    self._expired[session.name] = None
                    while len(self._expired) > _REMEMBERED:
                        self._expired.popitem(last=False)
                    continue
                late = [number for number, mask in session.masks.items() if mask.expires < now]
                self._drop(session, late)
        self._notify(over)

    def check_room(self, session: Session, masks: int, nbytes: int) -> None:
        """Refuse what `reserve` would refuse now."""
        with self._lock:
            self._refuse(session, masks, nbytes)

    def reserve(self, session: Session, masks: int, nbytes: int) -> None:
        """Promise memory for an upload before it is made; `QuotaExceeded` names the limit that it would pass."""
        with self._lock:
            self._refuse(session, masks, nbytes)
            self._used_bytes += nbytes
            session.nbytes += nbytes
            session.waiting += masks

    def unreserve(self, session: Session, masks: int, nbytes: int) -> None:
        """Take back a promise that `reserve` made."""
        with self._lock:
            session.waiting -= masks
            self._free(session, nbytes)

    def keep(self, session: Session, shares: dict[int, dict[str, U32]], nbytes: int) -> None:
        """Keep an upload's masks, of ``nbytes`` each, that memory was promised for: all, or none if this raises."""
        expires = self._clock() + self.limits.mask_ttl_s
        masks = {number: Mask(share, expires, nbytes) for number, share in shares.items()}
        with self._lock:
            if not session.closed:
                session.masks.update(masks)
            session.waiting -= len(masks)

    def load_keys(self, session: Session, keys: tuple[int, PreparedKeys] | None) -> None:
        """Make these the session's keys, with their epoch's number; `UnknownSession` once it was closed."""
        with self._lock:
            if session.closed:
                raise UnknownSession("the session was closed")
            session.keys = keys

    def release(self, session: Session, masks: Iterable[int]) -> None:
        """Forget some of a session's masks; numbers that it does not have are passed over."""
        with self._lock:
            self._drop(session, {number for number in masks if number in session.masks})

    def claim(self, session: Session, number: int, group: int, segment: str, row: bytes | memoryview) -> U32:
        """The share [slots] of a mask's segment, for this row of a group and no other.

        Raises `UnknownMask`, and `MaskReused` when another row came before.
        """
        digest = hashlib.blake2b(row, digest_size=16).digest()
        now = self._clock()
        with self._lock:
            mask = session.masks.get(number)
            if mask is None or segment not in mask.shares:
                raise UnknownMask(f"mask {number} is not prepared for the {segment} of the model")
            if mask.expires < now:
                raise UnknownMask(f"mask {number} expired after {self.limits.mask_ttl_s:g} s; prepare fresh ones")
            if mask.seen.setdefault(group, digest) != digest:
                raise MaskReused(f"mask {number} was used for group {group} with other bytes")
            return mask.shares[segment]

    def _refuse(self, session: Session, masks: int, nbytes: int) -> None:
        limits, held = self.limits, len(session.masks) + session.waiting
        if session.closed:
            raise UnknownSession("the session was closed")
        if held + masks > limits.max_masks_per_session:
            raise QuotaExceeded(
                f"{held} masks wait and {masks} more were asked for; the server allows a session "
                f"{limits.max_masks_per_session}: use a shorter prompt or a smaller pool"
            )
        if self._used_bytes + nbytes > limits.memory_bytes:
            raise QuotaExceeded(
                f"{masks} more masks take {_mib(nbytes)} of the server's memory for masks, where "
                f"{_mib(limits.memory_bytes - self._used_bytes)} of {_mib(limits.memory_bytes)} are free; "
                + ("try again later, or with" if nbytes <= limits.memory_bytes else "ask its operator for more, or use")
                + " a smaller pool"
            )

    def _forget(self, session: Session) -> None:
        if self._sessions.pop(session.name, None) is not None:
            session.closed = True
            session.masks.clear()
            session.keys = None
            self._free(session, session.nbytes)

    def _drop(self, session: Session, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._free(session, session.masks.pop(number).nbytes)

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


def mask_bytes(slots: int, groups: int) -> int:
    """Bytes that a prepared mask is counted with."""
    return 4 * slots + _RECORD_BYTES * groups
