"""What an answer costs so far, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from veil.client.stats import Stats
from veil.gateway.transcript import Piece


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Account:
    """What a request cost so far: prompt tokens and those not sent again, new tokens, the model's counters, moments."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    stats: Stats = field(default_factory=Stats)
    asked: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def token(self) -> None:
        """Count a token of the answer."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        self.new_tokens += 1


@dataclass(frozen=True)
class End:
    """Why an answer is over; ``text`` is the stop string that ended it, if one did."""

    reason: Literal["stop", "length", "tool_calls"]
    text: str | None = None


Emit = Callable[[Piece], None]
