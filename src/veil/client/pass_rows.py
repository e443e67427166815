"""The rows of batches that a forward pass takes: counted, taken, made when they are missing, and had ready."""

from __future__ import annotations

from collections.abc import Sequence

from veil.bundle.manifest import Manifest
from veil.client.background import BackgroundMaker, Ready
from veil.client.maker import RowMaker
from veil.client.pool import Missing, Part, RowPool
from veil.client.stats import Stats

_LATER_BATCHES = 2
"""Batches that are made at once for tokens after the first batch: one pass over the hint serves both."""


class PassRows:
    """What a session's forward passes take from its pool: one row of a batch for each row of a pass.

    Prompt rows, which need no logits, take rows without the head; the last row of a pass, every row of the head and a
    model that asks for logits of all rows take full ones. With a ``background`` missing rows are waited for; without, they
    are made at once, two batches at a time after the first.
    """

    def __init__(
        self,
        manifest: Manifest,
        pool: RowPool,
        maker: RowMaker,
        stats: Stats,
        batch_rows: int,
        background: BackgroundMaker | None = None,
    ) -> None:
        self._manifest = manifest
        self._segments = [group.segment for group in manifest.groups]
        self._pool = pool
        self._maker = maker
        self._stats = stats
        self._batch_rows = batch_rows
        self._background = background
        self._step = 1
        self._body_rows = 0
        self._head_rows = 0
        self._expect_head = False
        self._training = False

    def begin_forward(self, training: bool = False) -> tuple[str, list[int]]:
        """Bring the groups level; the session, and the numbers of batches that will not be used again.

        A pass of ``training`` asks for the logits of every row, and a pass of gradients through as many rows follows.
        """
        self._training = training
        if training:
            self._expect_head = True
        elif self._body_rows > 1:  # a pass of one row says nothing about the next one of many
            self._expect_head = self._head_rows >= self._body_rows
        self._body_rows = self._head_rows = 0
        if self._background is not None:
            self._background.forward()
            if not training:
                self._background.expect_step(0)
        return self._pool.level()

    def reserve(self, body: int, full: int, back: int = 0) -> None:
        """Have at least ``body`` rows without the head, ``full`` rows with it and ``back`` for gradients; returns then."""
        body = max(0, body - self._pool.unused(full=False)) if "body" in self._manifest.segments else 0
        full = max(0, full - self._pool.unused(full=True))
        with self._stats.phase("wait"):
            if body:
                self._maker.make(body, full=False)
            if full:
                self._maker.make(full, full=True)
            if back > self._pool.unused_back:
                self._maker.make_back(back - self._pool.unused_back)

    @property
    def ready(self) -> Ready:
        """Rows that are ready now."""
        return Ready(
            tokens=self._pool.unused(full=True), prompt_rows=self._pool.unused(full=False), back=self._pool.unused_back
        )

    def count(self, group: int, rows: int, *, prompt: bool = False) -> int:
        """Count a call's rows; how many of them may use rows without the head: all but the last, or all of a ``prompt``."""
        segment = self._segments[group]
        if segment == "back":
            return 0
        head = segment == "head"
        if head:
            self._head_rows += rows
        elif rows > self._body_rows:
            self._body_rows = rows
        if group == 0:
            self._stats.rows += rows
            self._stats.rows_ready += rows
            if self._background is not None:
                self._background.rows(rows)
                if self._training:
                    self._background.expect_step(rows)
        return 0 if head or self._expect_head else rows if prompt else max(0, rows - 1)

    def take(self, group: int, rows: int, prompt_rows: int) -> tuple[str, list[Part]]:
        """The session and rows for rows that were counted, spent; returns when there are enough."""
        taken = self._pool.take(group, rows, prompt_rows)
        if taken is not None:
            return taken
        if group == 0:
            missing = self._pool.missing(group, rows, prompt_rows)
            self._stats.rows_ready -= missing.prompt + missing.full
        with self._stats.phase("wait"):
            if self._background is not None:
                return self._background.wait_for(group, rows, prompt_rows)
            while taken is None:
                self._make(self._pool.missing(group, rows, prompt_rows))
                taken = self._pool.take(group, rows, prompt_rows)
        return taken

    def take_level(self, groups: Sequence[int]) -> Part | None:
        """One full row for a row of all these groups, which is counted; None if they are not level."""
        missing = self._pool.missing(groups[0], 1, 0)
        if missing:
            with self._stats.phase("wait"):
                self._make(missing)
        part = self._pool.take_level(groups)
        if part is not None:
            for group in groups:
                self.count(group, 1)
            self._stats.rows_ready -= bool(missing)
        return part

    def _make(self, missing: Missing) -> None:
        if missing.back:
            self._maker.make_back(missing.back)
            return
        body, full = lines(missing, self._batch_rows)
        if body:
            self._maker.make(body, full=False)
        if full:
            if not missing.prompt:
                full = max(full, self._step * self._batch_rows)
                self._step = _LATER_BATCHES
            self._maker.make(full, full=True)


def lines(missing: Missing, batch_rows: int) -> tuple[int, int]:
    """Rows to make without and with the head: whole batches of prompt rows, and what is left over with the head.

    A batch is made whole, and what a prompt leaves of a full one serves the tokens after it.
    """
    body = missing.prompt // batch_rows * batch_rows
    return body, missing.prompt - body + missing.full
