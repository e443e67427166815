"""Attention state of past generations, so that a conversation's next turn sends rows for its new tokens only.

The state is the client's own: keys and values of tokens that were computed before. It lives in memory, apart for each owner
of an API key: who holds one key learns nothing of what another key asked.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from veil.gateway.kept import KeptStates


@dataclass(frozen=True, eq=False)
class _Entry:
    ids: tuple[int, ...]
    cache: DynamicCache
    bytes: int
    owner: str
    adapter: str | None = None


class PrefixStore:
    """The most recent states within ``most_bytes`` for each owner. Thread safe; what is handed out is a copy."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: deque[_Entry] = deque()
        self._lock = threading.Lock()
        self.disk: KeptStates | None = None
        """Where states are kept for longer, if anywhere."""

    def take(self, ids: Sequence[int], owner: str = "", adapter: str | None = None) -> tuple[int, DynamicCache | None]:
        """How many of the first tokens of a prompt this owner's states under an adapter know, at most all but the last, and
        their state.
        """
        with self._lock:
            lengths = [
                _common(entry.ids, ids) if (entry.owner, entry.adapter) == (owner, adapter) else 0 for entry in self._entries
            ]
            best = max(range(len(lengths)), key=lengths.__getitem__, default=None)
            length = 0 if best is None else lengths[best]
            entry = None if best is None or length == 0 else self._entries[best]
            if entry is not None:
                self._entries.remove(entry)
                self._entries.append(entry)
        kept = None if self.disk is None or adapter is not None else self.disk.best(ids, owner, length)
        if kept is not None:
            return kept
        return (0, None) if entry is None else (length, _copy(entry.cache, length))

    def take_steps(
        self, ids: Sequence[int], step: int, owner: str = "", adapter: str | None = None
    ) -> tuple[int, DynamicCache | None]:
        """`take` of whole steps of so many tokens."""
        length, cache = self.take(ids, owner, adapter)
        whole = length // step * step
        return (0, None) if cache is None or whole == 0 else (whole, cache if whole == length else _copy(cache, whole))

    def forget(self, owner: str) -> None:
        """Forget the states of an owner."""
        with self._lock:
            self._entries = deque(entry for entry in self._entries if entry.owner != owner)

    def keep(
        self, ids: Sequence[int], cache: object, owner: str = "", adapter: str | None = None, *, lasting: bool = True
    ) -> None:
        """Remember the state after a generation: ``ids`` are prompt and answer, the state may lack the last of them.

        Without ``lasting`` it is not kept on disk. States that cannot be cut (sliding windows, recurrent layers) are not
        kept.
        """
        if not isinstance(cache, DynamicCache) or not all(type(layer) is DynamicLayer for layer in cache.layers):
            return
        length, size = cache.get_seq_length(), 2 * sum(layer.keys.nbytes for layer in cache.layers)
        entry = _Entry(tuple(ids[:length]), cache, size, owner, adapter)
        if length > len(ids):
            return
        if lasting and self.disk is not None and adapter is None:  # a name does not say which adapter it is
            self.disk.keep(ids, cache, owner)
        if size > self._most_bytes:
            return
        with self._lock:
            self._entries = deque(
                old
                for old in self._entries
                if (old.owner, old.adapter) != (owner, adapter) or _common(old.ids, entry.ids, 0) < len(old.ids)
            )
            self._entries.append(entry)
            while sum(old.bytes for old in self._entries if old.owner == owner) > self._most_bytes:
                self._entries.remove(next(old for old in self._entries if old.owner == owner))

    def clear(self) -> None:
        """Forget every state."""
        with self._lock:
            self._entries.clear()


def _common(known: Sequence[int], ids: Sequence[int], leave: int = 1) -> int:
    """Tokens that both begin with, at least ``leave`` of ``ids`` left over."""
    most = min(len(known), len(ids) - leave)
    return next((place for place in range(most) if known[place] != ids[place]), max(0, most))


def _copy(cache: DynamicCache, length: int) -> DynamicCache:
    made = DynamicCache()
    with torch.no_grad():
        for index, layer in enumerate(cache.layers):
            made.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
    return made
