"""Models' remote layers by their shapes alone, with random weights: what a server of them does does not depend on values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veil import noise
from veil.bundle.manifest import Group, Layer, Manifest
from veil.bundle.server_half import ServerModel
from veil.params import Params
from veil.seed import PublicSeed

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """(inputs, outputs) of each group of a model's body, in their order, and of its head."""

    body: Sizes
    head: tuple[int, int]
    secure: bool = True

    @property
    def params(self) -> Params:
        """The parameters that it is served with."""
        return Params.default() if self.secure else Params.insecure_tiny()


def _llama(width: int, inner: int, keys: int, layers: int, vocabulary: int) -> Shapes:
    body = ((width, width + 2 * keys), (width, width), (width, 2 * inner), (inner, width)) * layers
    return Shapes(body=body, head=(width, vocabulary))


MODELS = {
    "tiny": Shapes(body=((48, 96), (48, 48), (48, 96), (96, 48)) * 2, head=(48, 100), secure=False),
    "gpt2": Shapes(body=((768, 2304), (768, 768), (768, 3072), (3072, 768)) * 12, head=(768, 50257)),
    "smollm2": _llama(576, 1536, 192, 30, 49152),
    "llama-1b": _llama(2048, 8192, 512, 16, 128256),
    "llama-8b": _llama(4096, 14336, 1024, 32, 128256),
    "llama-70b": _llama(8192, 28672, 1024, 80, 128256),
}


def manifest_of(params: Params, sizes: Sequence[tuple[int, int]]) -> Manifest:
    """Groups of one layer each, the last one the head, with the bits that uniform weights get."""
    groups = []
    for number, (width, rows) in enumerate(sizes):
        layer = Layer(f"layer{number}", "linear", width, rows, 8, False)
        bits = noise.wire_bits(params, width, rows, 127 * (width / 3) ** 0.5)
        groups.append(Group((layer,), "head" if number == len(sizes) - 1 else "body", None, bits.input, bits.result))
    return Manifest(tuple(groups))


def random_model(name: str) -> ServerModel:
    """A server half with a named model's shapes and uniform weights; `ValueError` for another name."""
    if name not in MODELS:
        raise ValueError(f"there are no shapes of {name!r}; there are those of {', '.join(MODELS)}")
    shapes = MODELS[name]
    sizes = [*shapes.body, shapes.head]
    draw = np.random.default_rng(1)
    weights = tuple(_weights(draw, rows, width) for width, rows in sizes)
    return ServerModel(shapes.params, PublicSeed.fresh(), manifest_of(shapes.params, sizes), weights)


def _weights(draw: np.random.Generator, rows: int, width: int) -> NDArray[np.int8]:
    """Random bytes, without -128: as quick as memory, for models of billions of weights."""
    own = np.frombuffer(bytearray(draw.bytes(rows * width)), dtype=np.int8).reshape(rows, width)
    return np.maximum(own, -127, out=own)
