"""The hint on a CUDA device: what `hint.Hint` does, in the memory and layouts of `veil.kernels.cuda`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from veil.crypto import public
from veil.crypto.hint import SHARE_BITS, HintRows, MaskHalf, PreparedKeys, hint_bytes, prepare_keys
from veil.errors import DeviceUnavailable
from veil.kernels import cuda
from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.progress import Progress
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]
Tensor = torch.Tensor

_SLACK_BYTES = 384 << 20


@dataclass(frozen=True, eq=False)
class _Segment:
    slots: int
    hint: Tensor  # Ĥ [blocks·G, I, 2, N]
    digits: Tensor  # combination digits [M, blocks, G-1, 2, 3, N]


class DeviceHint:
    """Ĥ and the stored ``a`` side on the device; shares stay there too, as tensors."""

    def __init__(self, params: Params, digits: Tensor, segments: dict[str, _Segment]) -> None:
        self._params = params
        self._ring = ring_of(params)
        self._digits = digits
        self._segments = segments

    @classmethod
    def build(
        cls,
        params: Params,
        seed: PublicSeed,
        segments: dict[str, list[HintRows]],
        progress: Progress | None = None,
    ) -> tuple[DeviceHint, dict[str, U32]]:
        """See `hint.Hint.build`. Raises `DeviceUnavailable`, with figures, when the device's memory is too small."""
        ring = ring_of(params)
        report = progress or (lambda stage, done, total: None)
        if not cuda.interpreted():
            slots = [sum(len(part.weights) for part in rows) for rows in segments.values()]
            weight_bytes = sum(part.weights.nbytes for rows in segments.values() for part in rows)
            report(check_memory(params, slots, weight_bytes, cuda.memory_bytes()[0]), 1, 1)
        hints = {name: _build_hint(params, seed, rows, ring, name, report) for name, rows in segments.items()}
        keys = prepare_keys(public.key_halves(seed, params), params, cuda)
        halves = np.stack([public.mask_half(seed, params, m) for m in range(params.masks_per_epoch)])
        digits, leaves = cuda.expand_a(cuda.asarray(halves), keys.expansion, ring)
        built, tables = {}, {}
        for name, rows in segments.items():
            products = cuda.product(hints[name], leaves, ring)
            rotation, table = cuda.combine_a(products, keys.combination, params.spec.public_mask_bits, ring)
            tables[name] = cuda.to_numpy(table)
            built[name] = _Segment(sum(len(part.weights) for part in rows), hints[name], rotation)
        return cls(params, digits, built), tables

    @property
    def nbytes(self) -> int:
        """Bytes that the hint holds on the device."""
        held = [self._digits, *(t for s in self._segments.values() for t in (s.hint, s.digits))]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def prepare(self, masks: Sequence[MaskHalf], segments: Sequence[str]) -> dict[str, Tensor]:
        """See `hint.Hint.prepare`; the shares are device tensors [T, slots]."""
        if not masks:
            return {name: torch.empty((0, self._segments[name].slots), dtype=torch.uint32) for name in segments}
        epochs = list({id(mask.keys): mask.keys for mask in masks}.values())
        places = {id(keys): place for place, keys in enumerate(epochs)}
        sets = cuda.asarray(np.array([mask.index for mask in masks], dtype=np.int32))
        which = cuda.asarray(np.array([places[id(mask.keys)] for mask in masks], dtype=np.int32))
        return self.shares(cuda.asarray(np.stack([mask.half for mask in masks])), sets, which, epochs, segments)

    def shares(
        self, halves: Tensor, sets: Tensor, which: Tensor, epochs: Sequence[PreparedKeys], segments: Sequence[str]
    ) -> dict[str, Tensor]:
        """`prepare` for halves [T, 2, N] on the device, of public sets ``sets`` [T], with keys ``epochs[which[t]]``."""
        expansion = torch.stack([keys.expansion for keys in epochs])
        combination = torch.stack([keys.combination for keys in epochs])
        leaves = cuda.expand_b(halves, self._digits, expansion, self._ring, sets, which)
        shares = {}
        for name in segments:
            segment = self._segments[name]
            products = cuda.product(segment.hint, leaves, self._ring)
            whole = cuda.combine_b(products, segment.digits, combination, SHARE_BITS, self._ring, sets, which)
            shares[name] = whole[:, : segment.slots]
        return shares


def needed_bytes(params: Params, slots: Sequence[int], weight_bytes: int) -> int:
    """Device memory for segments of these sizes: int8 weights, Ĥ, digits, and what the making of M masks takes meanwhile."""
    rows = params.fold * max((params.blocks(count) for count in slots), default=0)
    polynomial = 4 * params.N
    working = params.masks_per_epoch * polynomial * (8 * params.leaves + 2 * rows) + _SLACK_BYTES
    return hint_bytes(params, slots) + weight_bytes + working


def check_memory(params: Params, slots: Sequence[int], weight_bytes: int, free_bytes: int) -> str:
    """Say what a server's half takes of the device's free memory; `DeviceUnavailable`, with figures, if it is more."""
    needed = needed_bytes(params, slots, weight_bytes)
    figures = f"{needed / 1e9:.1f} GB on the card for weights and hint of {sum(slots):,} outputs"
    if needed > free_bytes:
        raise DeviceUnavailable(f"{figures}, but {free_bytes / 1e9:.1f} GB are free; use a larger card or device='cpu'")
    return f"{figures}, {free_bytes / 1e9:.1f} GB are free"


def _build_hint(
    params: Params, seed: PublicSeed, rows: Sequence[HintRows], ring: Ring, name: str, report: Progress
) -> Tensor:
    blocks = params.blocks(sum(len(part.weights) for part in rows))
    like: Any = cuda.asarray(np.zeros(1, dtype=np.uint32))
    out = torch.empty((blocks * params.fold, params.leaves, 2, params.N), dtype=torch.uint32, device=like.device)
    for block, matrix in enumerate(_hint_blocks(params, seed, rows, ring)):
        report(f"hint of the {name}", block, blocks)
        cuda.outer_hint(matrix, ring, out[block * params.fold : (block + 1) * params.fold])
    report(f"hint of the {name}", blocks, blocks)
    return out


def _hint_blocks(params: Params, seed: PublicSeed, rows: Sequence[HintRows], ring: Ring) -> Iterator[Tensor]:
    """H' [≤ N, n] of one block of slots after another; a group's weights go to the device once, in pieces of a block."""
    pending: list[Tensor] = []
    held = 0
    for part in rows:
        polynomials = cuda.asarray(public.inner_polynomials(seed, params, part.group, part.weights.shape[1]))
        start = 0
        while start < len(part.weights):
            stop = min(len(part.weights), start + params.N - held)
            weights = cuda.asarray(np.ascontiguousarray(part.weights[start:stop]))
            pending.append(cuda.inner_hint(weights, polynomials, params.spec.result_bits, ring))
            held, start = held + stop - start, stop
            if held == params.N:
                yield torch.cat(pending)
                pending, held = [], 0
    if held:
        yield torch.cat(pending)
