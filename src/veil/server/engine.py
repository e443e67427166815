"""The untrusted half: clear weights, the hint, and masks that wait for their rows. No network, no keys, no client code."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.crypto.hint import HintRows, MaskHalf, prepare_keys
from veil.errors import MaskReused, UnknownSession, WireError
from veil.kernels import cpu
from veil.model.manifest import Manifest
from veil.params import Params
from veil.progress import Progress
from veil.seed import PublicSeed
from veil.server.arithmetic import Arithmetic, arithmetic_for, build_hint
from veil.server.store import Session, SessionStore, mask_bytes
from veil.wire import codec
from veil.wire.messages import MaskUpload, Upload

U32 = NDArray[np.uint32]
I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]


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


@dataclass(frozen=True, eq=False)
class Admitted:
    """An upload that passed every check that needs no arithmetic, with memory promised for its masks."""

    session: Session
    upload: Upload
    mask_bytes: int


@dataclass(frozen=True, eq=False)
class Claim:
    """Packed rows [T, bytes] of one group and the shares h that wait for them, [rows] each."""

    group: int
    rows: U8
    shares: list[Any]


class Engine:
    """Prepares masks and multiplies encrypted rows for any number of sessions.

    ``open``, ``load_epoch``, ``prepare``, ``evaluate``, ``release``, ``stop`` and ``close`` make it a
    `veil.wire.transport.Transport`. A service takes the steps of `prepare` and `evaluate` apart, to batch them over
    sessions: `admit` and `claim` check and may be called by any thread, `make` by one thread at a time, `answer` by any.
    """

    def __init__(self, model: ServerModel, hint: Any, kernels: ModuleType, store: SessionStore | None = None) -> None:
        self.model = model
        self.hint = hint
        self._work = arithmetic_for(model.weights, kernels)
        self.store = store or SessionStore()
        self._kernels = kernels
        self._admission = threading.Lock()
        self._places = [
            (group.segment, group.width, start, start + group.rows)
            for group, start in zip(model.manifest.groups, model.manifest.starts, strict=True)
        ]

    @property
    def on_card(self) -> bool:
        """Whether rows are multiplied on a CUDA device, where one product at a time has all of it."""
        return bool(self._kernels.name == "cuda")

    @property
    def arithmetic(self) -> Arithmetic:
        """Where rows are multiplied."""
        return self._work

    @classmethod
    def build(
        cls,
        model: ServerModel,
        kernels: ModuleType,
        progress: Progress | None = None,
        store: SessionStore | None = None,
    ) -> tuple[Engine, dict[str, U32]]:
        """An engine for a model and, for the compiler of a bundle, the client's tables ``a'`` by segment."""
        hint, tables = build_hint(model.params, model.seed, model.hint_rows(), kernels, progress)
        return cls(model, hint, kernels, store), tables

    # The transport, in process -------------------------------------------------------------------------------------------

    def open(self) -> str:
        """A new session's name, unguessable."""
        return self.store.open("", self).name

    def close(self, session: str) -> None:
        """Forget a session and everything that it prepared."""
        self.store.close(self.store.find(session))

    def stop(self) -> None:
        """Nothing: no call of this process waits for anybody."""

    def load_epoch(self, session: str, epoch: int, keys: bytes) -> None:
        """Take the packed key halves of a new epoch; numbers grow, and the old epoch's keys are forgotten."""
        self._make_one(session, Upload(epoch, keys, (), tuple(self.model.manifest.segments)))

    def prepare(self, session: str, epoch: int, masks: Sequence[MaskUpload], segments: Sequence[str]) -> None:
        """Make the shares of masks of the current epoch; every check comes before any work. See `admit`."""
        self._make_one(session, Upload(epoch, None, tuple(masks), tuple(segments)))

    def _make_one(self, session: str, upload: Upload) -> None:
        (error,) = self.make([self.admit(self.store.find(session), upload)])
        if error is not None:
            raise error

    def evaluate(self, session: str, group: int, masks: Sequence[int], data: bytes) -> bytes:
        """``W·b - h`` for packed rows of one group, one mask a row; packed results, row after row. See `claim`."""
        return self.answer([self.claim(self.store.find(session), group, masks, data)])[0]

    def release(self, session: str, masks: Sequence[int]) -> None:
        """Forget masks that the client will not use again."""
        self.store.release(self.store.find(session), masks)

    # Preparing -----------------------------------------------------------------------------------------------------------

    def check_header(self, session: Session, upload: Upload, masks: int) -> None:
        """Refuse what can be refused before the data of an upload of this many masks is received."""
        manifest, params = self.model.manifest, self.model.params
        segments = upload.segments
        if not segments or len(set(segments)) != len(segments) or not set(segments) <= set(manifest.segments):
            raise WireError(f"segments {list(segments)[:8]}, expected some of {list(manifest.segments)}")
        if not 0 <= masks <= params.masks_per_epoch:
            raise WireError(f"{masks} masks at once, an epoch has {params.masks_per_epoch}")
        self.store.check_room(session, masks, masks * self._mask_bytes(segments))

    def admit(self, session: Session, upload: Upload) -> Admitted:
        """Check an upload against its session and promise it memory; its order among the session's uploads is set here.

        Raises `WireError` for a wrong epoch, segment, set, number or length, `QuotaExceeded`.
        """
        self.check_header(session, upload, len(upload.masks))
        self._check_lengths(upload)
        indices = {mask.index for mask in upload.masks}
        numbers = [mask.number for mask in upload.masks]
        each = self._mask_bytes(upload.segments)
        with self._admission:
            if upload.keys is not None and upload.epoch <= session.epoch:
                raise WireError(f"epoch {upload.epoch} is not newer than {session.epoch}")
            if upload.keys is None and (session.epoch < 0 or upload.epoch != session.epoch):
                raise WireError(f"masks of epoch {upload.epoch}, but the session's epoch is {session.epoch}")
            used = set() if upload.keys is not None else session.used_sets
            if len(indices) != len(numbers) or used & indices:
                raise WireError("a set of this epoch is used twice")
            if any(number <= before for before, number in zip([session.highest, *numbers], numbers, strict=False)):
                raise WireError("mask numbers do not grow")
            key_bytes = 4 * 6 * len(self.model.params.automorphisms) * self.model.params.N if session.epoch < 0 else 0
            used, highest = used | indices, max([session.highest, *numbers])
            self.store.reserve(session, len(numbers), len(numbers) * each + key_bytes)
            session.epoch, session.used_sets, session.highest = upload.epoch, used, highest
        return Admitted(session, upload, each)

    def make(self, batch: Sequence[Admitted]) -> list[Exception | None]:
        """Prepare uploads of any sessions, all for the same segments, in one pass over Ĥ; what went wrong with each.

        Raises what fails all of them. Whatever happens, memory promised to an upload whose masks are not kept is given back.
        """
        errors: dict[Admitted, Exception] = {}
        promised = dict.fromkeys(batch)
        try:
            decoded: dict[Admitted, list[MaskHalf]] = {}
            for item in batch:
                try:
                    decoded[item] = self._decode(item)
                except Exception as error:
                    errors[item] = error
            halves = [half for own in decoded.values() for half in own]
            shares = self.hint.prepare(halves, batch[0].upload.segments) if halves else {}
            first = 0
            for item, own in decoded.items():
                try:
                    self._keep(item, shares, first)
                    del promised[item]
                except Exception as error:
                    errors[item] = error
                first += len(own)
        finally:
            for item in promised:
                self.give_back(item)
        return [errors.get(item) for item in batch]

    def give_back(self, item: Admitted) -> None:
        """Take back the promise of memory to an upload that is not made."""
        count = len(item.upload.masks)
        self.store.unreserve(item.session, count, count * item.mask_bytes)

    def _decode(self, item: Admitted) -> list[MaskHalf]:
        upload, params, session = item.upload, self.model.params, item.session
        if upload.keys is not None:
            self.store.load_keys(session, None)
            halves = codec.decode_keys(upload.keys, params, cpu)
            self.store.load_keys(session, (upload.epoch, prepare_keys(halves, params, self._kernels)))
        keys = session.keys
        if session.closed:
            raise UnknownSession("the session was closed")
        if keys is None or keys[0] != upload.epoch:
            raise WireError(f"the keys of epoch {upload.epoch} did not arrive, or newer ones did")
        return [MaskHalf(mask.index, codec.decode_mask(mask.data, params, cpu), keys[1]) for mask in upload.masks]

    def _keep(self, item: Admitted, shares: dict[str, Any], first: int) -> None:
        """Keep copies of an upload's shares, which begin at ``first``."""
        own = {
            mask.number: {name: self._work.own(shares[name][position]) for name in item.upload.segments}
            for position, mask in enumerate(item.upload.masks, first)
        }
        self.store.keep(item.session, own, item.mask_bytes)

    def _check_lengths(self, upload: Upload) -> None:
        params = self.model.params
        if upload.keys is not None and len(upload.keys) != params.epoch_key_bytes:
            raise WireError(f"epoch keys have {len(upload.keys)} bytes, expected {params.epoch_key_bytes}")
        for mask in upload.masks:
            if len(mask.data) != params.mask_bytes:
                raise WireError(f"a mask has {len(mask.data)} bytes, expected {params.mask_bytes}")
            if not 0 <= mask.index < params.masks_per_epoch:
                raise WireError(f"set {mask.index} is not below {params.masks_per_epoch}")

    def _mask_bytes(self, segments: Iterable[str]) -> int:
        manifest = self.model.manifest
        return mask_bytes(sum(manifest.segments.get(name, 0) for name in segments), len(manifest.groups))

    # Online --------------------------------------------------------------------------------------------------------------

    def claim(self, session: Session, group: int, masks: Sequence[int], data: bytes) -> Claim:
        """Match packed rows with the shares of their masks.

        The same bytes for the same mask and group may come again (a lost reply); other bytes raise `MaskReused`. Raises
        `UnknownMask`, and `WireError` for what does not fit the manifest.
        """
        if not 0 <= group < len(self._places):
            raise WireError(f"group {group} is not one of {len(self._places)}")
        segment, width, start, stop = self._places[group]
        rows = codec.rows_from(data, len(masks), width, self.model.params.spec.input_bits)
        if len(masks) > 1 and len(set(masks)) != len(masks):
            raise MaskReused("one mask for two rows")
        claim = self.store.claim
        shares = [
            claim(session, number, group, segment, row.data)[start:stop] for number, row in zip(masks, rows, strict=True)
        ]
        return Claim(group, rows, shares)

    def prefetch_after(self, group: int) -> Iterator[object]:
        """Steps that bring the weights of the group behind this one into the caches: a pass takes groups in their order."""
        return self._work.prefetch((group + 1) % len(self._places))

    def work(self, claim: Claim) -> int:
        """Multiply-adds of a claim."""
        return len(claim.shares) * self.model.weights[claim.group].size

    def answer(self, claims: Sequence[Claim], *, serial: bool = False) -> list[bytes]:
        """The packed results of some claims on one group, with one pass over its weights.

        ``serial`` keeps it on the calling thread.
        """
        spec, group = self.model.params.spec, claims[0].group
        shares = [share for claim in claims for share in claim.shares]
        rows = claims[0].rows if len(claims) == 1 else np.concatenate([claim.rows for claim in claims])
        packed = self._work.reply(group, rows, shares, spec.input_bits, spec.result_bits, serial=serial)
        replies, first = [], 0
        for claim in claims:
            replies.append(packed[first : first + len(claim.shares)].tobytes())
            first += len(claim.shares)
        return replies
