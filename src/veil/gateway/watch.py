"""A generation that is looked at token by token: what is shown of it, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import StoppingCriteria

from veil.gateway.account import Emit, End
from veil.gateway.sampling import Matcher, Sampler
from veil.gateway.transcript import Piece, Transcript

if TYPE_CHECKING:
    from veil.gateway.generation import ModelTurn


class Watch(StoppingCriteria):  # type: ignore[misc]
    """The stopping criterion of one generation, asked after each token: tokens in, text out, and whether it is over."""

    def __init__(
        self,
        transcript: Transcript,
        sampler: Sampler,
        ends: frozenset[int],
        matcher: Matcher | None,
        min_tokens: int,
        turn: ModelTurn,
        emit: Emit,
    ) -> None:
        self._transcript = transcript
        self._sampler = sampler
        self._ends = ends
        self._matcher = matcher
        self._min_tokens = min_tokens
        self._before = turn.account.new_tokens
        self._turn = turn
        self._emit = emit
        self._end: End | None = None
        self.ended = False
        self.most = 0
        self.over: Callable[[End], object] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Take the last token of input_ids [1, tokens]; whether to stop, as ``generate`` asks for it."""
        if not self.ended:
            self._take(int(input_ids[0, -1]))
        return torch.full((input_ids.shape[0],), self.ended, dtype=torch.bool)

    def _take(self, token: int) -> None:
        self._turn.account.token()
        self._turn.count("new", 1)
        if token in self._ends:
            self.ended = True
            self._transcript.close(token)
            self.finish()
            return
        may_stop = self._turn.account.new_tokens - self._before >= self._min_tokens
        self._show(self._transcript.add(token, self._sampler.last, may_stop=may_stop))
        self.ended = self._transcript.stopped or (self._matcher is not None and self._matcher.over)
        if self.ended or self._turn.account.new_tokens - self._before == self.most:
            self.finish()
        else:
            self._turn.check()
            self._turn.offer()

    def finish(self) -> End:
        """Show what was held back, and say why the answer is over; once."""
        if self._end is None:
            self._show(self._transcript.end())
            self._end = End("stop" if self.ended else "length", self._transcript.stopped_by)
            if self.over is not None:
                self._turn.settle()
                self.over(self._end)
        return self._end

    def _show(self, piece: Piece) -> None:
        if piece.text or piece.tokens:
            self._emit(piece)
