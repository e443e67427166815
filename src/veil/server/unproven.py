"""Those who came and have not shown yet what they want: calls before their first message, connections before their hello.

They are few, and nobody is kept out by them: when there are too many, the oldest of the address that has the most goes.
Who is honest needs a moment and is through; who waits on purpose makes room for the next.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

FIRST_S = 5.0
"""Seconds within which a first message or a hello has to come."""


class Unproven(Generic[T]):
    """At most ``most`` of them; ``end`` is called, from any thread, for those that have to go. Thread safe."""

    def __init__(self, most: int, end: Callable[[T], object]) -> None:
        self.most, self._end = max(1, most), end
        self._lock = threading.Lock()
        self._waiting: dict[T, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def holding(self, one: T, address: str) -> Iterator[None]:
        """Count one in while the block runs."""
        self.add(one, address)
        try:
            yield
        finally:
            self.remove(one)

    def add(self, one: T, address: str) -> None:
        """Count one in; another one ends if that is too many."""
        with self._lock:
            self._waiting[one] = (address, time.monotonic())
            gone = None
            if len(self._waiting) > self.most:
                crowd = Counter(where for where, _ in self._waiting.values()).most_common(1)[0][0]
                gone = next(other for other, (where, _) in self._waiting.items() if where == crowd)
                del self._waiting[gone]
        if gone is not None:
            self._end(gone)

    def remove(self, one: T) -> None:
        """It has shown what it wants, or is gone."""
        with self._lock:
            self._waiting.pop(one, None)

    def cut(self, longest_s: float) -> None:
        """End those that have waited for longer."""
        before = time.monotonic() - longest_s
        with self._lock:
            late = [one for one, (_, since) in self._waiting.items() if since < before]
            for one in late:
                del self._waiting[one]
        for one in late:
            self._end(one)


def address_of(peer: str) -> str:
    """Where a peer in gRPC's words, or HOST:PORT, comes from: an IPv4 address, or the first 64 bits of an IPv6 one."""
    host = peer.replace("%5B", "[").replace("%5D", "]").removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0]
    host = host.strip("[]").partition("%")[0]
    if ":" not in host:
        return host
    if host.startswith("::ffff:") and "." in host:
        return host[7:]
    try:
        return str(ipaddress.ip_network((host, 64), strict=False))
    except ValueError:
        return host
