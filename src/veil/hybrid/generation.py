"""What can be arranged around a generation: rows made before it, draft tokens, padding, and what the server saw of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from veil.client.session import Ready
from veil.client.stats import Stats
from veil.errors import NotCompiled
from veil.given import count_given, one_given
from veil.hybrid.arguments import check_speculating
from veil.hybrid.facts import CompiledFacts
from veil.network.timeouts import Timeouts
from veil.runtime.pace import Pace
from veil.runtime.padding import Padding

if TYPE_CHECKING:
    from veil.client.connection import Address
    from veil.network.link import Link
    from veil.runtime.speculation import Speculation

_ROW_S = 0.05
"""Seconds of a row, as believed before the first pass."""


class Generations(CompiledFacts):
    """The part of `HybridFHEModel` that arranges generations."""

    model: nn.Module
    stats: Stats
    _address: Address | None
    _link: Link | None

    def reserve(self, rows_body: int = 0, rows_full: int = 0, rows_back: int = 0) -> None:
        """Have rows ready: ``rows_body`` for prompt rows, ``rows_full`` for rows with logits, ``rows_back`` for gradients.

        Whole batches are made.
        """
        session = self._calls.session
        if session is None:
            raise NotCompiled("rows need a session; call set_fhe_mode('execute') first")
        rows = {"rows_body": rows_body, "rows_full": rows_full, "rows_back": rows_back}
        session.reserve(*(count_given(name, value) for name, value in rows.items()))

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Say that a generation of about ``prompt_rows`` rows and up to ``new_tokens`` tokens comes; returns at once.

        In mode ``remote`` its rows are made in the background, the prompt's first, in the memory that `connect` was given;
        a later call replaces an earlier one, so it may follow a prompt as it is typed. It is a hint: rows that
        are not ready are made when they are needed, and in other modes nothing happens. `ValueError` for negative counts.
        """
        prompt_rows, new_tokens = count_given("prompt_rows", prompt_rows), count_given("new_tokens", new_tokens)
        session, padding = self._calls.session, self.padding
        if session is not None:
            if padding is not None:
                prompt_rows, new_tokens = padding.rows(prompt_rows), padding.rows(new_tokens)
            session.expect(prompt_rows, new_tokens)

    @property
    def rows_ready(self) -> Ready:
        """Rows that are ready now: ``tokens`` and ``prompt_rows``."""
        session = self._calls.session
        return session.ready if session is not None else Ready()

    @property
    def last_sent(self) -> bytes:
        """The packed rows that were sent last, as the server got them; empty before the first."""
        session = self._calls.session
        return b"" if session is None else session.last_sent

    @property
    def padding(self) -> Padding | None:
        """The steps that a server sees in place of lengths, None for none: set before a generation.

        Prompts take more rows, of zeros, and answers go on in passes of zeros after they ended, also where they failed or
        nobody waits any more. Of ``generate``, ``max_new_tokens`` bounds them.
        """
        return self._calls.padding

    @padding.setter
    def padding(self, padding: Padding | None) -> None:
        one_given("padding", padding, Padding, "Padding(step=64)", optional=True)
        self._calls.padding = padding

    def stop_padding(self, stop: bool = True) -> None:
        """End answers that go on in passes of zeros, from any thread, and let none begin; for who ends the session."""
        self._calls.stop_padding(stop)

    @property
    def link(self) -> Link | None:
        """Round-trip time and bandwidth to the server, measured at first use; None without a server."""
        if self._link is None and self._address is not None:
            from veil.client.link import measure_link

            self._link = measure_link(self._address, Timeouts())
        return self._link

    def speculate(self, draft: object = "lookup", *, most: int = 16) -> Speculation:
        """Generate several tokens a pass: ``with hybrid.speculate() as options: hybrid.model.generate(..., **options)``.

        ``draft`` is ``lookup`` (what followed the last words where they stood before) or a small transformers model with
        the same vocabulary, which stays on the client. Up to ``most`` tokens are drafted and checked in one set of round
        trips; how many follows from what is accepted and what the passes take. Greedy output is the same as without,
        samples are of the same distribution, one sequence at a time. `ValueError` for another draft.
        """
        from veil.runtime.speculation import Speculation

        if self.padding is not None:
            raise ValueError("draft tokens show how often they were right, whatever the padding; leave out one of the two")
        most = check_speculating(self.model, draft, most)
        session, link = self._calls.session, self.link if self._calls.mode == "remote" else None
        fixed_s = len(self.manifest.forward) * link.rtt_s if link else 0.0
        pace = Pace(fixed_s=fixed_s, row_s=_ROW_S, most=most)
        ready = (lambda: session.ready.tokens) if session is not None else (lambda: most + 1)
        return Speculation(self.model, draft, self.stats, pace, ready)
