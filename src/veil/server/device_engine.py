"""`Engine` for a client of the same process on the same card: what crosses is packed bytes as well, as tensors there.

One session. Single rows, whose shapes are fixed, go in two steps, so that a client can record its step with `answer_current`
in it as one CUDA graph: `select` puts a mask's shares where that graph reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from veil.crypto.device_hint import DeviceHint
from veil.crypto.hint import PreparedKeys
from veil.errors import MaskReused, UnknownMask, WireError
from veil.kernels import cuda
from veil.kernels.cuda_rows import gathered
from veil.kernels.ring import ring_of
from veil.params import packed_bytes
from veil.server.arithmetic import DeviceArithmetic
from veil.server.engine import ServerModel
from veil.wire import device_codec

Tensor = torch.Tensor


class DeviceEngine:
    """Clear weights and the hint on the card, and the shares of one session's masks."""

    def __init__(self, model: ServerModel, hint: DeviceHint, arithmetic: DeviceArithmetic) -> None:
        self.model = model
        self._hint = hint
        self._weights = arithmetic.weights
        self._epoch = -1
        self._keys: PreparedKeys | None = None
        self._used_sets: set[int] = set()
        self._highest = -1
        self._shares: dict[int, tuple[dict[str, Tensor], int]] = {}  # of the batch, by segment, and a mask's place in it
        self._claimed: dict[int, set[int]] = {}
        like = self._weights[0]
        self._current = {
            name: torch.zeros((1, slots), dtype=torch.int32, device=like.device).view(torch.uint32)
            for name, slots in model.manifest.segments.items()
        }

    def load_epoch(self, epoch: int, keys: Tensor) -> None:
        """Take the packed key halves of a new epoch; numbers grow, and the old epoch's keys are forgotten."""
        if epoch <= self._epoch:
            raise WireError(f"epoch {epoch} is not newer than {self._epoch}")
        params = self.model.params
        loaded = cuda.load_keys(device_codec.decode_keys(keys, params), ring_of(params))
        self._keys = PreparedKeys(loaded[: params.levels], loaded[params.levels :])
        self._epoch, self._used_sets = epoch, set()

    def prepare(
        self, epoch: int, numbers: Sequence[int], sets: Sequence[int], data: Tensor, segments: Sequence[str]
    ) -> None:
        """Make the shares of masks of the current epoch from their packed halves [T, bytes]; every check comes first.

        Raises `WireError` for a wrong epoch, segment, set, number or size.
        """
        params = self.model.params
        if self._keys is None or epoch != self._epoch:
            raise WireError(f"masks of epoch {epoch}, but the session's epoch is {self._epoch}")
        if not segments or not set(segments) <= set(self.model.manifest.segments):
            raise WireError(f"segments {list(segments)[:8]}, expected some of {list(self.model.manifest.segments)}")
        if len(set(sets)) != len(numbers) or self._used_sets & set(sets):
            raise WireError("a set of this epoch is used twice")
        if any(not 0 <= index < params.masks_per_epoch for index in sets):
            raise WireError(f"a set is not below {params.masks_per_epoch}")
        if any(number <= before for before, number in zip([self._highest, *numbers], numbers, strict=False)):
            raise WireError("mask numbers do not grow")
        halves = device_codec.decode_masks(data, len(numbers), params)
        self._used_sets |= set(sets)
        self._highest = max([self._highest, *numbers])
        index = cuda.asarray(np.array(sets, dtype=np.int32))
        shares = self._hint.shares(halves, index, torch.zeros_like(index), [self._keys], segments)
        for position, number in enumerate(numbers):
            self._shares[number] = shares, position
            self._claimed[number] = set()

    def release(self, numbers: Sequence[int]) -> None:
        """Forget masks that the client will not use again."""
        for number in numbers:
            self._shares.pop(number, None)
            self._claimed.pop(number, None)

    def close(self) -> None:
        """Forget keys and masks."""
        self._keys = None
        self.release(list(self._shares))
        for share in self._current.values():
            share.view(torch.int32).zero_()

    # Online --------------------------------------------------------------------------------------------------------------

    def claim(self, group: int, numbers: Sequence[int]) -> None:
        """Note that these masks are used for the group now; `UnknownMask`, or `MaskReused` for a second time."""
        for number in numbers:
            claimed = self._claimed.get(number)
            if claimed is None:
                raise UnknownMask(f"mask {number} is not here")
            if group in claimed:
                raise MaskReused(f"mask {number} was already used for group {group}")
            claimed.add(group)

    def claim_all(self, groups: Sequence[int], number: int) -> None:
        """`claim` of one mask for a row of all these groups."""
        for group in groups:
            self.claim(group, (number,))

    def answer(self, group: int, numbers: Sequence[int], data: Tensor) -> Tensor:
        """``W·b - h`` for packed rows [T, bytes] of one group under claimed masks; packed results [T, bytes]."""
        info, start = self.model.manifest.groups[group], self.model.manifest.starts[group]
        held = [self._shares[number] for number in numbers]
        for number, (shares, _) in zip(numbers, held, strict=True):
            if info.segment not in shares:
                raise UnknownMask(f"mask {number} was not prepared for the {info.segment}")
        rows = [(shares[info.segment], place) for shares, place in held]
        return self._reply(group, data, gathered(rows, start, start + info.rows))

    def select(self, number: int) -> None:
        """Make a mask's shares those that `answer_current` uses."""
        shares, place = self._shares[number]
        for name, share in shares.items():
            self._current[name].view(torch.int32).copy_(share.view(torch.int32)[place : place + 1])

    def answer_current(self, group: int, data: Tensor) -> Tensor:
        """`answer` for one packed row under the mask that was selected."""
        info, start = self.model.manifest.groups[group], self.model.manifest.starts[group]
        return self._reply(group, data, self._current[info.segment][:, start : start + info.rows])

    def _reply(self, group: int, data: Tensor, h: Tensor) -> Tensor:
        spec = self.model.params.spec
        width = self.model.manifest.groups[group].width
        if data.dtype != torch.uint8 or tuple(data.shape) != (len(h), packed_bytes(width, spec.input_bits)):
            raise WireError(f"{tuple(data.shape)} bytes for {len(h)} rows of {width} words")
        return cuda.answer(data, self._weights[group], h, spec.input_bits, spec.result_bits)
