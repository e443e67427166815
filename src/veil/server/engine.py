"""The untrusted half: clear weights and the hint. It computes; sessions, network, keys and client code are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veil.bundle.fingerprint import fingerprint_of
from veil.bundle.server_half import ServerModel
from veil.crypto.hint import HintRows, ServerHint, share_bytes
from veil.errors import WireError
from veil.kernels.interface import Array, GroupResults, GroupRows, Kernels, Rows, places_of
from veil.kernels.ring import ring_of
from veil.params import packed_bytes
from veil.progress import Progress
from veil.server.hint_files import load_hint, save_hint
from veil.wire.messages import BatchUpload

I8 = NDArray[np.int8]

_RECORD_BYTES = 12  # for each group and row
_FEW_ROWS = 8  # of one group: for more a GPU has its matrix units

MOST_BATCHES = 8
"""Batches of one upload."""


@dataclass(eq=False, slots=True)
class Claim:
    """Packed rows [R, bytes] of one group, the rows of the shares h that wait for them, and how many outputs are asked."""

    group: int
    rows: Array
    shares: list[Rows]
    slots: int
    count: int = field(init=False)
    """Rows."""

    def __post_init__(self) -> None:
        self.count = len(self.rows)

    def asks_like(self, other: Claim) -> bool:
        """Whether one product can answer both."""
        return (self.group, self.slots) == (other.group, other.slots)


class Engine:
    """Makes the shares of batches and multiplies encrypted rows, on the processor of its kernels; it knows no sessions.

    `shares` is called by one thread at a time, everything else by any.
    """

    def __init__(
        self,
        model: ServerModel,
        hint: ServerHint,
        weights: Sequence[Array],
        kernels: Kernels,
    ) -> None:
        self.model = model
        self.hint = hint
        self.kernels = kernels
        self.joins_groups = kernels.joins_groups
        """Whether `results` takes claims on several groups."""

        self.weights = weights
        self._ring = ring_of(model.params)
        self._places = [
            (
                (group.segment, group.rows, packed_bytes(group.width, group.input_bits)),
                (group.input_bits, group.result_bits),
                start,
            )
            for group, start in zip(model.manifest.groups, model.manifest.starts, strict=True)
        ]

    @property
    def groups(self) -> int:
        """Groups of layers."""
        return len(self._places)

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
            return cls(model, kept, weights, kernels)
        segments: dict[str, list[HintRows]] = {name: [] for name in model.manifest.segments}
        for index, group in enumerate(model.manifest.groups):
            segments[group.segment].append(HintRows(index, weights[index]))
        hint = ServerHint.build(model.params, model.seed, segments, kernels, progress)
        if folder is not None:
            save_hint(folder, hint, kernels, mark)
        return cls(model, hint, weights, kernels)

    # Offline -------------------------------------------------------------------------------------------------------------

    def check_header(self, segments: Sequence[str], batches: int) -> None:
        """Raise `WireError` for an upload of this many batches that no model like this one takes."""
        known = self.model.manifest.segments
        if not segments or len(set(segments)) != len(segments) or not set(segments) <= set(known):
            raise WireError(f"segments {list(segments)[:8]}, expected some of {list(known)}")
        if not 0 <= batches <= MOST_BATCHES:
            raise WireError(f"{batches} batches at once, expected up to {MOST_BATCHES}")

    def batch_bytes(self, segments: Iterable[str]) -> int:
        """Bytes that a batch of these segments is counted with."""
        manifest, params = self.model.manifest, self.model.params
        shares = sum(share_bytes(params, manifest.segments[name]) for name in segments)
        return shares + record_bytes(params.T, len(manifest.groups))

    def decode(self, batches: Sequence[BatchUpload]) -> Array:
        """Uploaded batches in the NTT domain [B, terms, 2, N] uint32; `WireError` for residues that are none."""
        packed = [self.kernels.asarray(batch.data).reshape(1, -1) for batch in batches]
        size = self.model.params.batch_bytes
        data = self.kernels.concatenate(packed) if packed else self.kernels.asarray(np.empty((0, size), dtype=np.uint8))
        return self.kernels.decode_batches(data, self._ring)

    def shares(self, decoded: Sequence[Array], segments: Sequence[str]) -> dict[str, Array]:
        """Shares h of all these batches [B, T, slots] uint32 by segment, in one pass over G."""
        found = [own for own in decoded if len(own)]
        return self.hint.prepare(self.kernels.concatenate(found), segments) if found else {}

    # Online --------------------------------------------------------------------------------------------------------------

    def place(self, group: int) -> tuple[str, int, int]:
        """A group's segment, outputs, and bytes of a packed row; `WireError` for a group that is none."""
        if not 0 <= group < len(self._places):
            raise WireError(f"group {group} is not one of {len(self._places)}")
        return self._places[group][0]

    def prefetch_after(self, group: int) -> Iterator[object]:
        """Steps that bring the weights of the group behind this one into the caches: a pass takes groups in their order."""
        there = len(self.model.manifest.forward)
        return self.kernels.prefetch(self.weights[0 if group + 1 == there else (group + 1) % len(self._places)])

    def work(self, claim: Claim) -> int:
        """Multiply-adds of a claim."""
        return claim.count * self.model.weights[claim.group].size

    def results(self, claims: Sequence[Claim], *, serial: bool = False) -> GroupResults:
        """The packed results of each of some claims, on one group, or on several where the engine joins groups.

        They hold until the calling thread's next call.
        """
        if self.joins_groups and _are_joined(claims):
            return self.kernels.answer_groups([self._rows_of(claim) for claim in claims])
        packed = self.kernels.to_numpy(self.product(claims, serial=serial))
        return GroupResults(packed.reshape(-1), places_of([claim.count * packed.shape[1] for claim in claims]))

    def _rows_of(self, claim: Claim) -> GroupRows:
        _, bits, column = self._places[claim.group]
        weights = self.weights[claim.group]
        weights = weights if claim.slots == len(weights) else weights[: claim.slots]
        return GroupRows(claim.rows, weights, claim.shares, column, bits)

    def answer(self, claims: Sequence[Claim], *, serial: bool = False) -> list[Array]:
        """The packed results [rows of the claim, bytes] uint8 of each of some claims; see `product`."""
        packed = self.product(claims, serial=serial)
        if len(claims) == 1:
            return [packed]
        return [packed[first:last] for first, last in places_of([claim.count for claim in claims])]

    def product(self, claims: Sequence[Claim], *, serial: bool = False) -> Array:
        """The packed results [R, bytes] uint8 of some claims on one group and as many outputs, in order, in one pass.

        ``serial`` keeps it on the calling thread.
        """
        kernels, one = self.kernels, self._rows_of(claims[0])
        if len(claims) == 1:
            return kernels.answer(kernels.asarray(one.data), one.weights, one.shares, one.column, one.bits, serial=serial)
        shares = [part for claim in claims for part in claim.shares]
        rows = [claim.rows for claim in claims]
        if all(isinstance(own, np.ndarray) for own in rows):  # they go to a GPU in one piece
            together = kernels.asarray(np.concatenate(rows))
        else:
            together = kernels.concatenate([kernels.asarray(own) for own in rows])
        return kernels.answer(together, one.weights, shares, one.column, one.bits, serial=serial)


def _are_joined(claims: Sequence[Claim]) -> bool:
    """Whether kernels that join groups take these as they are: on several groups, or few rows of one."""
    return not all(claim.asks_like(claims[0]) for claim in claims) or sum(claim.count for claim in claims) <= _FEW_ROWS


def record_bytes(rows: int, groups: int) -> int:
    """Bytes of what is noted of a batch's rows, beside its shares."""
    return _RECORD_BYTES * rows * groups
