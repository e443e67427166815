"""What a network link costs: round trips and bandwidth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Link:
    """Seconds of an empty round trip, and bytes a second."""

    rtt_s: float
    bytes_per_s: float

    def transfer_s(self, size: float) -> float:
        """Seconds that this many bytes add to round trips."""
        return size / self.bytes_per_s
