"""Processor kernels that join groups as a GPU's do: what a table of addresses asks for, by the reference's arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.kernels import joined_rows as row
from veil.kernels import reference
from veil.kernels.cpu.backend import CpuKernels
from veil.kernels.interface import JoinedProduct

I64 = NDArray[np.int64]


def at(address: int, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """A copy of the array at an address."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(ctypes.string_at(address, size), kind).reshape(shape)


class AddressedProduct:
    """Answers when `finish` is called; ``rounds`` has how many requests each product was of."""

    def __init__(self, most_rows: int, rounds: list[int]) -> None:
        self.most_rows, self.rounds = most_rows, rounds
        self._parts: list[tuple[list[int], NDArray[np.uint8]]] = []

    def take_widths(self, widths: Iterable[int]) -> None:
        assert all(width > 0 for width in widths)

    def begin(self, rows: I64, turns: I64) -> None:
        assert 0 < rows[:, row.COUNT].sum() <= self.most_rows
        self._parts, end = [], 0
        self.rounds.append(len(rows))
        for own, turn in zip(rows.tolist(), turns, strict=True):
            self._parts.append((own, at(own[row.DATA], (own[row.COUNT], own[row.ROW_BYTES]), np.uint8)))
            turn[row.FIRST] = end
            end += own[row.COUNT] * ((own[row.OUTPUTS] * own[row.DOWN] + 7) // 8)
            turn[row.END] = end

    def finish(self) -> NDArray[np.uint8]:
        made = [np.empty(0, np.uint8)]
        for own, data in self._parts:
            outputs, width, count, stride = own[row.OUTPUTS], own[row.WIDTH], own[row.COUNT], own[row.STRIDE] // 4
            weights = at(own[row.WEIGHTS], (outputs, width), np.int8)
            shares = np.stack([at(own[row.SHARES] + 4 * stride * n, (outputs,), np.uint32) for n in range(count)])
            words = reference.unpack(data, width, own[row.UP]) << np.uint32(32 - own[row.UP])
            values = reference.matmul(weights, words) - shares
            made.append(reference.pack(reference.top_bits(values, own[row.DOWN]), own[row.DOWN]).reshape(-1))
        return np.concatenate(made)


class JoiningKernels(CpuKernels):
    """The processor's kernels with products of several groups."""

    joins_groups = True

    def __init__(self, most_rows: int = 64) -> None:
        super().__init__()
        self.most_rows = most_rows
        self.rounds: list[int] = []
        """How many requests each round was of."""

    def joined(self) -> JoinedProduct:
        return AddressedProduct(self.most_rows, self.rounds)
