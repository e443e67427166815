"""Keys and values of a cache that grows, with room for more rows: a row is written, where torch copies them all."""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_LEAST = 64
"""Rows that there is room for beside those that were there."""
_ATTRIBUTE = "veil_room"


class GrowingLayer(Protocol):
    """What is used of transformers' ``DynamicLayer``: a row more is a tensor more."""

    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool


class KeyRoom:
    """Keys and values [1, groups, rows, size] float32 of a cache's layer, where more rows can be written behind them.

    The layer holds views, which stay what they are: a place is written once, and by whoever holds the last views.
    """

    def __init__(self, layer: GrowingLayer) -> None:
        rows = layer.keys.shape[2]
        self._most = rows + max(_LEAST, rows // 4)
        self._buffers = []
        for own in (layer.keys, layer.values):
            buffer = torch.empty(1, own.shape[1], self._most, own.shape[3])
            buffer[:, :, :rows] = own
            self._buffers.append(buffer)
        self.length = rows
        self.keys, self.values = (buffer[0].numpy() for buffer in self._buffers)
        self._given: list[torch.Tensor] = [layer.keys, layer.values]

    def fits(self, layer: GrowingLayer) -> bool:
        """Whether the layer holds what this room gave it last, and there is room for a row."""
        given = self._given
        return layer.keys is given[0] and layer.values is given[1] and self.length < self._most

    def grow(self, layer: GrowingLayer) -> None:
        """Note that a row was written at place ``length``; the layer has it too."""
        self.length += 1
        self._given = [buffer.narrow(2, 0, self.length) for buffer in self._buffers]
        layer.keys, layer.values = self._given

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy of the layer makes a room of its own."""
        return type(None), ()


def growing_layer(cache: object, index: int) -> GrowingLayer | None:
    """A cache's layer of transformers' plain kind, with keys and values of one sequence in float32; None for any other."""
    kinds = sys.modules.get("transformers.cache_utils")
    if kinds is None or type(cache) is not kinds.DynamicCache or getattr(cache, "offloading", True):
        return None
    layers: list[GrowingLayer] = getattr(cache, "layers", [])
    if index >= len(layers):
        return None
    layer = layers[index]
    if type(layer) is not kinds.DynamicLayer or not layer.is_initialized:
        return None
    keys, values = layer.keys, layer.values
    if type(keys) is not torch.Tensor or keys.ndim != 4 or keys.shape != values.shape or keys.shape[0] != 1:
        return None
    plain = keys.dtype is values.dtype is torch.float32 and keys.is_cpu and not keys.requires_grad
    return layer if plain else None


def room_of(layer: GrowingLayer) -> KeyRoom:
    """The room of a layer, with place for one row more."""
    room = layer.__dict__.get(_ATTRIBUTE)
    if room is None or not room.fits(layer):
        room = layer.__dict__[_ATTRIBUTE] = KeyRoom(layer)
    assert isinstance(room, KeyRoom)
    return room
