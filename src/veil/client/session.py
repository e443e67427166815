"""The trusted half: batches of rows offline, encryption and decryption of rows. It talks to a `Transport`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from veil.bundle.client_half import ClientModel
from veil.checks.rows import AnswerChecks
from veil.client.background import BackgroundMaker, OfflineRows, Ready
from veil.client.maker import RowMaker
from veil.client.pass_rows import PassRows
from veil.client.pool import Part, RowPool
from veil.client.stats import Stats
from veil.errors import NotFiniteActivation, UnknownBatch, UnknownSession
from veil.kernels.interface import Array, Kernels, Rows, Scaling, first_slots
from veil.network.timeouts import Timeouts
from veil.params import packed_bytes
from veil.random import SecretRng
from veil.wire.messages import Span
from veil.wire.transport import Transport

__all__ = ["ClientSession", "OfflineRows", "Ready"]

_RECOVERIES = 3


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Place:
    """What a group's rows need: its scaling, where its pads and shares begin, and the bits of the wire."""

    scaling: Scaling
    column: int
    start: int
    segment: str
    slots: int
    input_bits: int
    result_bits: int
    row_bytes: int
    reply_bytes: int
    """Of a row, with the results for all slots."""


class ClientSession:
    """One session after another with one server: offline batches, each under fresh secrets, and rows evaluated with them.

    With ``offline_rows`` batches are made in the background. With ``checks`` every reply is checked before it is read.
    When the server forgets the session, the next one has fresh batches, and what was under way is encrypted anew under
    fresh rows. ``scalings`` has one entry a group.
    """

    def __init__(
        self,
        model: ClientModel,
        transport: Transport,
        kernels: Kernels,
        scalings: Sequence[Scaling],
        rng: SecretRng,
        stats: Stats,
        *,
        offline_rows: OfflineRows | None = None,
        timeouts: Timeouts | None = None,
        checks: AnswerChecks | None = None,
    ) -> None:
        self.model = model
        self.stats = stats
        self.kernels = kernels
        self.transport = transport
        self.scalings = scalings
        self.pool = RowPool(model.manifest)
        self.maker = RowMaker(model, transport, kernels, rng, stats, self.pool, timeouts or Timeouts())
        rows = model.params.T
        self.background = BackgroundMaker(self.maker, self.pool, offline_rows, rows) if offline_rows else None
        self.pass_rows = PassRows(model.manifest, self.pool, self.maker, stats, rows, self.background)
        self._places = [
            _Place(
                scaling=scaling,
                column=self.maker.batches.group_start(group),
                start=model.manifest.starts[group],
                segment=info.segment,
                slots=info.rows,
                input_bits=info.input_bits,
                result_bits=info.result_bits,
                row_bytes=packed_bytes(info.width, info.input_bits),
                reply_bytes=packed_bytes(info.rows, info.result_bits),
            )
            for group, (info, scaling) in enumerate(zip(model.manifest.groups, scalings, strict=True))
        ]
        self._sent: Array | None = None
        self._under_way = False
        self.checks = checks
        self._unchecked: list[tuple[int, Array]] = []

    def begin_forward(self, training: bool = False) -> None:
        """Tell the session that a forward pass starts: groups are brought level, used batches are forgotten.

        What a pass that failed left to be asked is forgotten: its result went nowhere. Gradients come back through a pass
        of ``training``.
        """
        self._under_way, self._unchecked = True, []
        self._release(*self.pass_rows.begin_forward(training))

    def end_forward(self) -> None:
        """Tell the session that a forward pass ended; raises `NotFiniteActivation` if NaN or infinity reached a group in it.

        Where the backend cannot tell at once, such a row was sent, encrypted like any other; its result goes nowhere.
        """
        unchecked, self._unchecked = self._unchecked, []  # asked first: a GPU that is still at work hides what that launches
        if unchecked and not self.kernels.finite(self.kernels.concatenate([scales for _, scales in unchecked])):
            self._refuse(next(group for group, scales in unchecked if not self.kernels.finite(scales)))
        self._under_way = False
        if self.checks is not None:
            with self.stats.phase("check"):
                self.checks.end_pass()

    def reserve(self, body: int = 0, full: int = 0, back: int = 0) -> None:
        """Have at least ``body`` rows without the head, ``full`` rows with it and ``back`` for gradients; returns then.

        What earlier passes used up is let go before, so that its memory serves the new rows.
        """
        if not self._under_way:
            self._release(*self.pool.level())
        self.pass_rows.reserve(body, full, back)

    def expect(self, prompt_rows: int, new_tokens: int) -> None:
        """Begin to prepare in the background for a generation of about this size; nothing without a background."""
        if self.background is not None:
            self.background.expect(prompt_rows, new_tokens)

    @property
    def ready(self) -> Ready:
        """Rows that are ready now."""
        return self.pass_rows.ready

    @property
    def last_sent(self) -> bytes:
        """The packed rows that were sent last, as the server got them; empty before the first."""
        return b"" if self._sent is None else self.kernels.to_numpy(self._sent).tobytes()

    def evaluate(self, group: int, x: Array, slots: int | None = None) -> Array:
        """``W·x + bias`` for rows x [R, width] float32 of one group, encrypted → [R, rows] float32.

        With ``slots`` the rows are a prompt's, and only as many outputs are asked for, from the first on. Takes R fresh
        rows, spent before a byte leaves; waits for more if the pool is short. Raises `NotFiniteActivation` for NaN or
        infinity before anything is sent, where the backend can tell at once.
        """
        if self.checks is not None and self.checks.found is not None:
            self.checks.stop_if_caught()
        place, kernels, rows = self._places[group], self.kernels, len(x)
        prompt_rows = self.pass_rows.count(group, rows, prompt=slots is not None)
        scaling = place.scaling if slots is None else first_slots(place.scaling, slots)
        slots = place.slots if slots is None else slots
        for left in reversed(range(_RECOVERIES)):
            session, parts = self.pass_rows.take(group, rows, prompt_rows)
            start_s = time.perf_counter()
            pads = [Rows(part.batch.pads, part.first, part.count) for part in parts]
            sent = None
            if self.checks is None:
                data, scales = kernels.encrypt(x, scaling, pads, place.column, place.input_bits)
            else:
                data, scales, sent = kernels.encrypt_checked(x, scaling, pads, place.column, place.input_bits)
            self.check(group, scales)
            self._sent = data
            start_s = self.stats.spent("encrypt", start_s)
            try:
                spans = [Span(part.batch.number, part.first, part.count) for part in parts]
                reply = self.transport.evaluate(session, group, spans, data, slots)
            except (UnknownSession, UnknownBatch):
                if not left:
                    raise
                self.stats.spent("online_server", start_s)
                self.maker.reopen(session)
                continue
            start_s = self.stats.spent("online_server", start_s)
            self._moved(group, rows, slots)
            shares = [Rows(part.batch.shares[place.segment], part.first, part.count) for part in parts]
            reply = kernels.asarray(reply)
            if self.checks is None:
                outputs = kernels.decrypt(reply, scaling, shares, place.start, place.result_bits, scales)
            else:
                outputs = self.checks.decrypt(group, sent, reply, scaling, shares, place.start, slots, scales)
            self.stats.spent("decrypt", start_s)
            return outputs
        raise AssertionError

    def close(self) -> None:
        """End the session and forget every batch."""
        if self.background is not None:
            self.background.stop()
        if self.checks is not None:
            self.checks.close()
        session = self.pool.session
        self.maker.close()
        self._sent = None
        if session:
            try:
                self.transport.close(session)
            except UnknownSession:
                return

    # For a pass that is replayed as a whole -------------------------------------------------------------------------------

    def take_row(self, groups: Sequence[int]) -> tuple[str, Part] | None:
        """The session and one row for a pass of one row through all these groups, spent; None if they are not level."""
        part = self.pass_rows.take_level(groups)
        if part is None:
            return None
        for group in groups:
            self._moved(group, 1, self.model.manifest.groups[group].rows)
        return self.pool.session, part

    def pad_column(self, group: int) -> int:
        """The column of a row's pads where a group's inputs begin."""
        return self.maker.batches.group_start(group)

    @property
    def pad_words(self) -> int:
        """Words of a row's pads."""
        return self.maker.batches.pad_words

    def _release(self, session: str, batches: Sequence[int]) -> None:
        """Tell the server that some batches will not be used again."""
        if batches:
            try:
                self.transport.release(session, batches)
            except UnknownSession:
                self.maker.reopen(session)

    def check(self, group: int, scales: Array) -> None:
        """Raise `NotFiniteActivation` for a NaN among scales [R] float64: at once, or at the pass's end if asking waits."""
        if not self.kernels.asks_cheaply:
            self._unchecked.append((group, scales))
        elif not self.kernels.finite(scales):
            self._refuse(group)

    def _refuse(self, group: int) -> None:
        name = self.model.manifest.groups[group].name
        raise NotFiniteActivation(f"NaN or infinity reached {name}; generation stops here and its result is dropped")

    def _moved(self, group: int, rows: int, slots: int) -> None:
        place, stats = self._places[group], self.stats
        stats.trips += 1
        stats.bytes_up_online += rows * place.row_bytes
        each = place.reply_bytes if slots == place.slots else packed_bytes(slots, place.result_bits)
        stats.bytes_down_online += rows * each
