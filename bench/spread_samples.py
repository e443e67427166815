"""Answers and shares of some slots of a model that is cut over devices, against the processor's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from bench.load_gpus import packed
from bench.made_weights import MadeRows
from bench.spread_model import Spread
from veil.bundle.server_half import ServerModel
from veil.crypto.hint import HintRows, ServerHint
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Array, Rows
from veil.server.engine import Engine

_SAMPLED_SLOTS = 256
"""At each end of a device's part of a group."""

_SAMPLED_BLOCKS = 2


def differences(spread: Spread, group: int) -> tuple[int, int, int]:
    """Answers that differ, shares that differ, and slots compared, of all devices' parts of a group."""
    cpu = kernels_for("cpu")
    model, wrong, compared = spread.model, 0, 0
    made, start, w = cast(MadeRows, model.weights[group]), model.manifest.starts[group], model.params.w
    blocks: list[tuple[int, NDArray[np.uint32]]] = []
    for count in (1, 3):
        data = packed(model, group, count)
        whole = spread.shared.answer(group, data)
        for place, slots in enumerate(spread.engine.places):
            first, last = slots.ranges[group]
            if first == last:
                continue
            _, shares, column, bits = spread.part(place, group)
            for a, b in sampled_ranges(first, last):
                own = [Rows(fetched(shares, 0, count, column + a - first, b - a), 0, count)]
                right = cpu.to_numpy(cpu.answer(cpu.asarray(data), made[a:b].array(), own, 0, bits))
                wrong += not np.array_equal(right, whole[:, a * bits[1] // 8 : a * bits[1] // 8 + right.shape[1]])
                compared += b - a
            if count == 1:
                begin, end = -(-(start + first) // w) * w - start, (start + last) // w * w - start
                inside = [begin + w * number for number in range((end - begin) // w)]
                chosen = {*inside[:_SAMPLED_BLOCKS], *inside[-_SAMPLED_BLOCKS:]}
                blocks += [(at, fetched(shares, 0, model.params.T, column + at - first, w)) for at in sorted(chosen)]
    return wrong, _shares_differ(spread, group, blocks), compared


def _shares_differ(spread: Spread, group: int, blocks: Sequence[tuple[int, NDArray[np.uint32]]]) -> int:
    """How many blocks' shares, each from its first slot on, are not the processor's."""
    if not blocks:
        return 0
    model, cpu = spread.model, kernels_for("cpu")
    segment, w = model.manifest.groups[group].segment, model.params.w
    made = cast(MadeRows, model.weights[group])
    rows = np.concatenate([made[at : at + w].array() for at, _ in blocks])
    hint = ServerHint.build(model.params, model.seed, {segment: [HintRows(group, rows)]}, cpu)
    own = Engine(model, hint, [], cpu)
    right = cpu.to_numpy(own.shares([own.decode([spread.shared.upload])], (segment,))[segment][0])
    return sum(not np.array_equal(right[:, w * n : w * n + w], found) for n, (_, found) in enumerate(blocks))


def sampled_groups(model: ServerModel) -> list[int]:
    """The first groups, some in the middle, the last ones and the head."""
    last = len(model.manifest.groups) - 1
    return sorted({0, 1, 2, 3, last // 2, last // 2 + 1, last - 2, last - 1, last} & set(range(last + 1)))


def sampled_ranges(first: int, last: int) -> list[tuple[int, int]]:
    """Slots at both ends of a part, which begins at a whole byte of results; both from multiples of 8 on."""
    later = max(first, (last - _SAMPLED_SLOTS) // 8 * 8)
    return sorted({(first, min(last, first + _SAMPLED_SLOTS)), (later, last)})


def fetched(shares: Array, first: int, rows: int, column: int, columns: int) -> NDArray[np.uint32]:
    """Some rows and columns of shares [T, slots] uint32."""
    if isinstance(shares, torch.Tensor):
        part = shares.view(torch.int32)[first : first + rows, column : column + columns].contiguous()
        return np.ascontiguousarray(part.cpu().numpy()).view(np.uint32)
    return np.ascontiguousarray(shares[first : first + rows, column : column + columns])
