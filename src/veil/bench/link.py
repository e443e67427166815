"""What a network link costs: a formula, and delays added in process that check it.

A token makes one round trip for each group of remote layers, one after the other, so

    seconds = online + round trips · rtt + (bytes up + bytes down) / bandwidth

when its mask was made ahead. Making the mask sends more bytes and waits for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_SPIN_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class Link:
    """A round-trip time and a bandwidth, the same in both directions."""

    rtt_s: float
    bytes_per_s: float

    def round_trip_s(self, up: int, down: int) -> float:
        """Seconds of one round trip that carries these bytes."""
        return self.rtt_s + (up + down) / self.bytes_per_s


def token_seconds(online_s: float, round_trips: float, nbytes: float, link: Link) -> float:
    """The formula: a token whose mask is ready."""
    return online_s + round_trips * link.rtt_s + nbytes / link.bytes_per_s


@contextmanager
def delayed(transport: type[Any], link: Link) -> Iterator[None]:
    """Inside the block ``transport.evaluate`` takes as much longer as the link would."""
    original = transport.evaluate

    def evaluate(self: Any, session: str, group: int, masks: Any, data: bytes) -> bytes:
        reply: bytes = original(self, session, group, masks, data)
        _wait(link.round_trip_s(len(data), len(reply)))
        return reply

    transport.evaluate = evaluate
    try:
        yield
    finally:
        transport.evaluate = original


def _wait(duration_s: float) -> None:
    """Sleep, exactly: the system wakes late, so the last half millisecond is spent turning."""
    end = time.perf_counter() + duration_s
    if duration_s > _SPIN_S:
        time.sleep(duration_s - _SPIN_S)
    while time.perf_counter() < end:
        pass
