"""The untrusted half: clear weights, the hint, and masks that wait for their rows. No network, no keys, no client code."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from veil.crypto.hint import Hint, HintRows, MaskHalf, PreparedKeys, Progress, prepare_keys
from veil.errors import MaskReused, UnknownMask, UnknownSession, WireError
from veil.model.manifest import Manifest
from veil.params import Params
from veil.seed import PublicSeed
from veil.wire import codec
from veil.wire.messages import MaskUpload

U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class ServerModel:
    """What the server half of a bundle holds: parameters, seed, manifest and each group's int8 weights [rows, width]."""

    params: Params
    seed: PublicSeed
    manifest: Manifest
    weights: tuple[I8, ...]

    def hint_rows(self) -> dict[str, list[HintRows]]:
        """The weights of each segment in slot order."""
        rows: dict[str, list[HintRows]] = {name: [] for name in self.manifest.segments}
        for index, group in enumerate(self.manifest.groups):
            rows[group.segment].append(HintRows(index, self.weights[index]))
        return rows


@dataclass(eq=False)
class _Mask:
    shares: dict[str, U32]
    seen: dict[int, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class _Session:
    epoch: int = -1
    keys: PreparedKeys | None = None
    used_sets: set[int] = field(default_factory=set)
    masks: dict[int, _Mask] = field(default_factory=dict)
    highest: int = -1


class Engine:
    """Prepares masks and multiplies encrypted rows for any number of sessions.

    Not thread safe: a service calls it from one worker.
    """

    def __init__(self, model: ServerModel, hint: Hint, kernels: ModuleType) -> None:
        self.model = model
        self.hint = hint
        self._kernels = kernels
        self._sessions: dict[str, _Session] = {}

    @classmethod
    def build(cls, model: ServerModel, kernels: ModuleType, progress: Progress | None = None) -> tuple[Engine, dict[str, U32]]:
        """An engine for a model and, for the compiler of a bundle, the client's tables ``a'`` by segment."""
        hint, tables = Hint.build(model.params, model.seed, dict(model.hint_rows()), kernels, progress)
        return cls(model, hint, kernels), tables

    def open(self) -> str:
        """A new session's name, unguessable."""
        name = secrets.token_hex(16)
        self._sessions[name] = _Session()
        return name

    def close(self, session: str) -> None:
        """Forget a session and everything that it prepared."""
        self._sessions.pop(session, None)

    def load_epoch(self, session: str, epoch: int, keys: bytes) -> None:
        """Take the packed key halves of a new epoch; numbers grow, and the old epoch's keys are forgotten.

        Raises `WireError` for keys that do not decode or an epoch that is not new, `UnknownSession`.
        """
        state = self._session(session)
        if epoch <= state.epoch:
            raise WireError(f"epoch {epoch} is not newer than {state.epoch}")
        halves = codec.decode_keys(keys, self.model.params, self._kernels)
        state.keys = prepare_keys(halves, self.model.params, self._kernels)
        state.epoch = epoch
        state.used_sets = set()

    def prepare(self, session: str, epoch: int, masks: Sequence[MaskUpload], segments: Sequence[str]) -> None:
        """Make the shares of some masks of the current epoch, for the segments asked for.

        Every check comes before any work: `WireError` for a wrong epoch, segment, set or number, `UnknownSession`.
        """
        state = self._session(session)
        halves = self.check_masks(session, epoch, masks, segments)
        shares = self.hint.prepare(halves, segments)
        for position, upload in enumerate(masks):
            self.store(state, upload, {name: shares[name][position] for name in segments})

    def check_masks(
        self, session: str, epoch: int, masks: Sequence[MaskUpload], segments: Sequence[str]
    ) -> list[MaskHalf]:
        """Decode and check uploads of one session; see `prepare`."""
        state = self._session(session)
        if state.keys is None or epoch != state.epoch:
            raise WireError(f"masks of epoch {epoch}, but the session's epoch is {state.epoch}")
        if not segments or len(set(segments)) != len(segments) or not set(segments) <= set(self.model.manifest.segments):
            raise WireError(f"segments {list(segments)}, expected some of {list(self.model.manifest.segments)}")
        indices = [upload.index for upload in masks]
        numbers = [upload.number for upload in masks]
        if len(set(indices)) != len(indices) or state.used_sets & set(indices):
            raise WireError("a set of this epoch is used twice")
        if any(not 0 <= index < self.model.params.masks_per_epoch for index in indices):
            raise WireError(f"a set is not below {self.model.params.masks_per_epoch}")
        if any(number <= before for before, number in zip([state.highest, *numbers], numbers, strict=False)):
            raise WireError("mask numbers do not grow")
        halves = [codec.decode_mask(upload.data, self.model.params, self._kernels) for upload in masks]
        return [MaskHalf(index, half, state.keys) for index, half in zip(indices, halves, strict=True)]

    def store(self, state: _Session, upload: MaskUpload, shares: dict[str, U32]) -> None:
        """Keep a prepared mask."""
        state.used_sets.add(upload.index)
        state.highest = max(state.highest, upload.number)
        state.masks[upload.number] = _Mask({name: np.ascontiguousarray(share) for name, share in shares.items()})

    def evaluate(self, session: str, group: int, masks: Sequence[int], data: bytes) -> bytes:
        """``W·b - h`` for packed rows of one group, one mask a row; packed results, row after row.

        The same bytes for the same mask and group may come again (a lost reply); other bytes raise `MaskReused`. Raises
        `UnknownMask`, `UnknownSession` and `WireError` for what does not fit the manifest.
        """
        state = self._session(session)
        if not 0 <= group < len(self.model.manifest.groups):
            raise WireError(f"group {group} is not one of {len(self.model.manifest.groups)}")
        spec, info = self.model.params.spec, self.model.manifest.groups[group]
        rows = codec.rows_from(data, len(masks), info.width, spec.input_bits)
        if len(set(masks)) != len(masks):
            raise MaskReused("one mask for two rows")
        start = self.model.manifest.starts[group]
        shares = []
        for number, row in zip(masks, rows, strict=True):
            mask = state.masks.get(number)
            if mask is None or info.segment not in mask.shares:
                raise UnknownMask(f"mask {number} is not prepared for the {info.segment}")
            digest = hashlib.blake2b(row, digest_size=16).digest()
            if mask.seen.setdefault(group, digest) != digest:
                raise MaskReused(f"mask {number} was used for group {group} with other bytes")
            shares.append(mask.shares[info.segment][start : start + info.rows])
        h = shares[0][None] if len(shares) == 1 else np.stack(shares) if shares else np.empty((0, info.rows), np.uint32)
        answer = self._kernels.answer(rows, self.model.weights[group], h, spec.input_bits, spec.result_bits)
        return bytes(answer.tobytes())

    def release(self, session: str, below: int) -> None:
        """Forget the session's masks with numbers under ``below``: the client will not use them again."""
        masks = self._session(session).masks
        for number in [number for number in masks if number < below]:
            del masks[number]

    def _session(self, name: str) -> _Session:
        try:
            return self._sessions[name]
        except KeyError:
            raise UnknownSession("the server does not know this session; open a new one with fresh keys") from None


