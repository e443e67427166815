"""The untrusted half: clear weights, the hint, and batches that wait for their rows. No network, no keys, no client code."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.bundle.fingerprint import fingerprint_of
from veil.bundle.server_half import ServerModel
from veil.crypto.hint import HintRows, ServerHint, share_bytes
from veil.errors import UnknownSession, WireError
from veil.kernels.interface import Array, Kernels, Rows
from veil.kernels.ring import ring_of
from veil.params import packed_bytes
from veil.progress import Progress
from veil.server.hint_files import load_hint, save_hint
from veil.server.store import Session, SessionStore, record_bytes
from veil.wire.messages import BatchUpload, Span, Upload, rows_of

I8 = NDArray[np.int8]

MOST_BATCHES = 8
"""Batches of one upload."""


@dataclass(frozen=True, eq=False)
class Admitted:
    """An upload that passed every check that needs no arithmetic, with memory promised for its batches."""

    session: Session
    upload: Upload
    batch_bytes: int


@dataclass(frozen=True, eq=False)
class Claim:
    """Packed rows [R, bytes] of one group, the rows of the shares h that wait for them, and how many outputs are asked."""

    group: int
    rows: Array
    shares: list[Rows]
    slots: int

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.rows)

    def asks_like(self, other: Claim) -> bool:
        """Whether one product can answer both."""
        return (self.group, self.slots) == (other.group, other.slots)


class Engine:
    """Prepares batches and multiplies encrypted rows for any number of sessions, on the processor of its kernels.

    ``open``, ``prepare``, ``evaluate``, ``release``, ``stop`` and ``close`` make it a `veil.wire.transport.Transport`. A
    service takes the steps of `prepare` and `evaluate` apart, to batch them over sessions: `admit` and `claim` check and may
    be called by any thread, `make` by one thread at a time, `answer` by any.
    """

    batch_ttl_s = float("inf")

    def __init__(
        self,
        model: ServerModel,
        hint: ServerHint,
        weights: Sequence[Array],
        kernels: Kernels,
        store: SessionStore | None = None,
    ) -> None:
        self.model = model
        self.hint = hint
        self.store = store or SessionStore()
        self.kernels = kernels
        self.weights = weights
        self._ring = ring_of(model.params)
        self._admission = threading.Lock()
        self._newest: Session | None = None
        self._places = [
            (group.segment, (group.input_bits, group.result_bits), start)
            for group, start in zip(model.manifest.groups, model.manifest.starts, strict=True)
        ]

    @property
    def on_gpu(self) -> bool:
        """Whether rows are multiplied on a CUDA device, where one product at a time has all of it."""
        return self.kernels.name == "cuda"

    @classmethod
    def build(
        cls,
        model: ServerModel,
        kernels: Kernels,
        progress: Progress | None = None,
        store: SessionStore | None = None,
        hints: Path | None = None,
    ) -> Engine:
        """An engine for a model; its hint is built from the weights, or read from ``hints`` if it was kept there before.

        On a GPU a hint is built quicker than read, so none is kept.
        """
        weights = kernels.load_weights(model.weights)
        mark, kept = fingerprint_of(model.params, model.seed, model.manifest), None
        folder = None if hints is None or kernels.name == "cuda" else hints / f"{mark[:32]}-{kernels.name}"
        if folder is not None:
            kept = load_hint(folder, model.params, model.manifest.segments, kernels, mark)
        if kept is not None:
            return cls(model, kept, weights, kernels, store)
        segments: dict[str, list[HintRows]] = {name: [] for name in model.manifest.segments}
        for index, group in enumerate(model.manifest.groups):
            segments[group.segment].append(HintRows(index, weights[index]))
        hint = ServerHint.build(model.params, model.seed, segments, kernels, progress)
        if folder is not None:
            save_hint(folder, hint, kernels, mark)
        return cls(model, hint, weights, kernels, store)

    # The transport, in process -------------------------------------------------------------------------------------------

    def open(self) -> str:
        """A new session's name, unguessable."""
        return self.store.open("", self).name

    def close(self, session: str) -> None:
        """Forget a session and everything that it prepared."""
        self.store.close(self.store.find(session))

    def stop(self) -> None:
        """Nothing: no call of this process waits for anybody."""

    def prepare(self, session: str, batches: Sequence[BatchUpload], segments: Sequence[str]) -> None:
        """Make the shares of some batches; every check comes before any work. See `admit`."""
        (error,) = self.make([self.admit(self.store.find(session), Upload(tuple(batches), tuple(segments)))])
        if error is not None:
            raise error

    def evaluate(self, session: str, group: int, spans: Sequence[Span], data: Array, slots: int) -> Array:
        """``W·b - h`` for packed rows of one group, one row of a batch each; packed results. Rows cannot come twice."""
        own = self._newest
        if own is None or own.name != session or own.closed:
            own = self._newest = self.store.find(session)
        return self.answer([self.claim(own, group, spans, data, slots, again=False)])[0]

    def release(self, session: str, batches: Sequence[int]) -> None:
        """Forget batches that the client will not use again."""
        self.store.release(self.store.find(session), batches)

    # Preparing -----------------------------------------------------------------------------------------------------------

    def check_header(self, session: Session, segments: Sequence[str], batches: int) -> None:
        """Refuse what can be refused before the data of an upload of this many batches is received."""
        known = self.model.manifest.segments
        if not segments or len(set(segments)) != len(segments) or not set(segments) <= set(known):
            raise WireError(f"segments {list(segments)[:8]}, expected some of {list(known)}")
        if not 0 <= batches <= MOST_BATCHES:
            raise WireError(f"{batches} batches at once, expected up to {MOST_BATCHES}")
        self.store.check_room(session, batches, batches * self.batch_bytes(segments))

    def admit(self, session: Session, upload: Upload) -> Admitted:
        """Check an upload against its session and promise it memory; its order among the session's uploads is set here.

        Raises `WireError` for a wrong segment, number or length, `QuotaExceeded`.
        """
        self.check_header(session, upload.segments, len(upload.batches))
        expected = self.model.params.batch_bytes
        for batch in upload.batches:
            if len(batch.data) != expected:
                raise WireError(f"a batch has {len(batch.data)} bytes, expected {expected}")
        numbers = [batch.number for batch in upload.batches]
        each = self.batch_bytes(upload.segments)
        with self._admission:
            if any(number <= before for before, number in zip([session.highest, *numbers], numbers, strict=False)):
                raise WireError("batch numbers do not grow")
            self.store.reserve(session, len(numbers), len(numbers) * each)
            session.highest = max([session.highest, *numbers])
        return Admitted(session, upload, each)

    def make(self, items: Sequence[Admitted]) -> list[Exception | None]:
        """Prepare uploads of any sessions, all for the same segments, in one pass over G; what went wrong with each.

        Raises what fails all of them. Memory promised to an upload whose batches are not kept is given back.
        """
        errors: dict[Admitted, Exception] = {}
        promised = dict.fromkeys(items)
        try:
            decoded: dict[Admitted, Array] = {}
            for item in items:
                try:
                    decoded[item] = self._decode(item)
                except Exception as error:
                    errors[item] = error
            points = [own for own in decoded.values() if len(own)]
            shares = self.hint.prepare(self.kernels.concatenate(points), items[0].upload.segments) if points else {}
            first = 0
            for item in decoded:
                try:
                    self._keep(item, shares, first)
                    del promised[item]
                except Exception as error:
                    errors[item] = error
                first += len(item.upload.batches)
        finally:
            for item in promised:
                self.give_back(item)
        return [errors.get(item) for item in items]

    def give_back(self, item: Admitted) -> None:
        """Take back the promise of memory to an upload that is not made."""
        count = len(item.upload.batches)
        self.store.unreserve(item.session, count, count * item.batch_bytes)

    def batch_bytes(self, segments: Iterable[str]) -> int:
        """Bytes that a batch of these segments is counted with."""
        manifest, params = self.model.manifest, self.model.params
        shares = sum(share_bytes(params, manifest.segments[name]) for name in segments)
        return shares + record_bytes(params.T, len(manifest.groups))

    def _decode(self, item: Admitted) -> Array:
        if item.session.closed:
            raise UnknownSession("the session was closed")
        packed = [self.kernels.asarray(batch.data).reshape(1, -1) for batch in item.upload.batches]
        size = self.model.params.batch_bytes
        data = self.kernels.concatenate(packed) if packed else self.kernels.asarray(np.empty((0, size), dtype=np.uint8))
        return self.kernels.decode_batches(data, self._ring)

    def _keep(self, item: Admitted, shares: dict[str, Array], first: int) -> None:
        """Keep an upload's part of the shares, which begins at batch ``first``."""
        own = {
            batch.number: {name: shares[name][position] for name in item.upload.segments}
            for position, batch in enumerate(item.upload.batches, first)
        }
        self.store.keep(item.session, own, item.batch_bytes)

    # Online --------------------------------------------------------------------------------------------------------------

    def claim(
        self, session: Session, group: int, spans: Sequence[Span], data: Array, slots: int, *, again: bool = True
    ) -> Claim:
        """Match packed rows [R, bytes] with the shares of their batches, for the group's first ``slots`` outputs.

        With ``again`` the same bytes for the same rows may come once more (a lost reply); other bytes raise `RowReused`.
        Raises `UnknownBatch`, and `WireError` for what does not fit the manifest.
        """
        if not 0 <= group < len(self._places):
            raise WireError(f"group {group} is not one of {len(self._places)}")
        segment, (up, _), _ = self._places[group]
        info = self.model.manifest.groups[group]
        if not 0 < slots <= info.rows:
            raise WireError(f"{slots} outputs of group {group}, which has {info.rows}")
        row_bytes = packed_bytes(info.width, up)
        rows = rows_of(spans)
        if tuple(data.shape) != (rows, row_bytes):
            raise WireError(f"{tuple(data.shape)} bytes for {rows} rows of {row_bytes} bytes")
        parts: list[Any] = [None] * len(spans)
        first = 0
        for at, span in enumerate(spans if again else ()):
            parts[at] = np.ascontiguousarray(data[first : first + span.count]).data
            first += span.count
        return Claim(group, data, self.store.claim(session, spans, group, segment, parts), slots)

    def claim_row(self, session: str, groups: Sequence[int], span: Span) -> dict[str, Rows]:
        """Spend one row for all these groups at once, where rows cannot come twice; its shares by segment."""
        own, found = self.store.find(session), {}
        for group in groups:
            segment = self._places[group][0]
            found[segment] = self.store.claim(own, [span], group, segment, [None])[0]
        return found

    def prefetch_after(self, group: int) -> Iterator[object]:
        """Steps that bring the weights of the group behind this one into the caches: a pass takes groups in their order."""
        there = len(self.model.manifest.forward)
        return self.kernels.prefetch(self.weights[0 if group + 1 == there else (group + 1) % len(self._places)])

    def work(self, claim: Claim) -> int:
        """Multiply-adds of a claim."""
        return claim.count * self.model.weights[claim.group].size

    def answer(self, claims: Sequence[Claim], *, serial: bool = False) -> list[Array]:
        """The packed results of some claims on one group and as many outputs, with one pass over its weights.

        ``serial`` keeps it on the calling thread.
        """
        group, slots, kernels = claims[0].group, claims[0].slots, self.kernels
        _, bits, column = self._places[group]
        if len(claims) == 1:
            rows, weights = kernels.asarray(claims[0].rows), self.weights[group]
            weights = weights if slots == len(weights) else weights[:slots]
            return [kernels.answer(rows, weights, claims[0].shares, column, bits, serial=serial)]
        shares = [part for claim in claims for part in claim.shares]
        together = kernels.concatenate([kernels.asarray(claim.rows) for claim in claims])
        packed = kernels.answer(together, self.weights[group][:slots], shares, column, bits, serial=serial)
        replies, first = [], 0
        for claim in claims:
            replies.append(packed[first : first + claim.count])
            first += claim.count
        return replies
