"""How many tokens to draft before a forward pass: what is expected to be accepted, against what the rows will cost."""

from __future__ import annotations

from collections import deque

_KEPT = 24
_DECAY = 0.95
_RETRY_AFTER = 6


class Pace:
    """Chooses the number of draft tokens from the acceptance and the times seen so far.

    With probability p that a draft token is accepted, k draft tokens give ``(1 - p^(k+1)) / (1 - p)`` tokens on average,
    for a pass of ``fixed + (k + 1)·row`` seconds: round trips are fixed, bytes and arithmetic go with the rows. Both are
    fitted to the passes seen; ``fixed_s`` and ``row_s`` are what is believed before. ``most`` bounds the draft tokens.
    """

    def __init__(self, *, fixed_s: float, row_s: float, most: int) -> None:
        self.most = most
        self._passes: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._fixed_s = fixed_s
        self._believe(row_s)
        self._accepted, self._tried = 1.2, 2.0
        self._skipped = 0

    @property
    def acceptance(self) -> float:
        """The probability that a draft token is accepted, as far as it is known."""
        return min(self._accepted / self._tried, 0.98)

    def draft_tokens(self, ready: int, prepare_s: float) -> int:
        """How many tokens to draft now; rows beyond the ``ready`` ones cost ``prepare_s`` more each."""
        fixed, row = self._fit()
        p = self.acceptance

        def speed(k: int) -> float:
            return (1 - p ** (k + 1)) / (1 - p) / (fixed + (k + 1) * row + max(0, k + 1 - ready) * prepare_s)

        best = max(range(self.most + 1), key=speed)
        self._skipped = self._skipped + 1 if best == 0 else 0
        if self._skipped > _RETRY_AFTER and fixed > row:
            self._skipped = 0
            return 1
        return best

    def saw_drafts(self, drafted: int, accepted: int) -> None:
        """Learn from a pass; what comes after the first wrong draft token was not tried."""
        if drafted:
            self._accepted = _DECAY * self._accepted + accepted
            self._tried = _DECAY * self._tried + min(drafted, accepted + 1)

    def saw_prompt(self, rows: int, seconds: float) -> None:
        """Take what a row costs from the prompt's pass, which has many; it says nothing about what is fixed."""
        self._believe(max(0.0, seconds - self._fixed_s) / max(1, rows))

    def saw_pass(self, rows: int, seconds: float) -> None:
        """Learn what a pass of this many rows takes, waiting for rows not counted."""
        self._passes.append((float(rows), seconds))

    def _believe(self, row_s: float) -> None:
        few, many = 1.0, 1.0 + self.most
        self._anchors = [(few, self._fixed_s + few * row_s), (many, self._fixed_s + many * row_s)]

    def _fit(self) -> tuple[float, float]:
        """Least squares through the passes seen and, with the weight of one pass, what was believed before."""
        points = [*self._anchors, *self._passes]
        mean_rows = sum(rows for rows, _ in points) / len(points)
        mean_s = sum(seconds for _, seconds in points) / len(points)
        spread = sum((rows - mean_rows) ** 2 for rows, _ in points)
        row = sum((rows - mean_rows) * (seconds - mean_s) for rows, seconds in points) / spread
        row = max(row, 1e-4)
        return max(mean_s - row * mean_rows, 0.0), row
