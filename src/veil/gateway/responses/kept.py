"""Responses that a later request may continue: in memory, the latest ones, apart for each API key."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from veil.gateway.failures import ApiError
from veil.gateway.incoming import Message

_MOST = 512
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Kept:
    """A response as it was sent, and the conversation up to its end, without instructions."""

    body: dict[str, object]
    turns: list[Message]
    owner: str
    bytes: int


class KeptResponses:
    """Thread safe; the oldest go first. Nothing of it is ever on disk."""

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._all: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, id: str, body: dict[str, object], turns: list[Message], owner: str) -> None:
        """Remember a response; one that is larger than all that may be kept is not."""
        size = len(str(body)) + sum(len(turn.model_dump_json()) for turn in turns)
        with self._lock:
            self._all[id] = Kept(body, turns, owner, size)
            while len(self._all) > self._most or sum(one.bytes for one in self._all.values()) > self._most_bytes:
                self._all.popitem(last=False)

    def find(self, id: str, owner: str, param: str | None = None) -> Kept:
        """A response of this owner. `ApiError`: 404, or 400 where a request continues it (``param``)."""
        with self._lock:
            found = self._all.get(id)
        if found is None or found.owner != owner:
            message = f"there is no response {id[:80]!r}; the gateway keeps the last ones in memory, until it ends"
            code = "previous_response_not_found" if param else "not_found"
            raise ApiError(400 if param else 404, message, param=param, code=code)
        return found

    def forget(self, id: str, owner: str) -> None:
        """Remove a response. `ApiError` 404."""
        self.find(id, owner)
        with self._lock:
            self._all.pop(id, None)
