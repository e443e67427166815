"""Weights of two words: a second int8 row for an output, of what rounding took from the first, where gradients need it.

An int8 product is about 41 dB from the float one, the encrypted product 53 dB from the int8 one. A gradient goes through all
layers forward and back, and adds up what each loses. The second word's row is one more slot of the same group: the input
goes up once as before, and the two results are added. It costs what a slot costs; the noise is that of the first.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from veil.bundle.manifest import Group

I8 = NDArray[np.int8]
F32 = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)

STEPS = 62
"""Steps of a second word in one of the first: it lies within ±31."""

WIDE = 4
"""Outputs for an input from which on a group's weights are not worth a second word."""


def forward_words(group: Group) -> int:
    """How many words the weights of a group that is compiled for training get: 2 where they count most for gradients.

    Those are groups with fewer than `WIDE` outputs for an input: queries, keys and values, and what goes back to the
    stream. In what widens a row, an MLP's first layers and the head, a second word would cost more slots than all of these.
    """
    plain = all(layer.bits == 8 and layer.kind != "embedding" for layer in group.layers) and group.fusion is None
    return 2 if plain and group.segment == "body" and group.outputs < WIDE * group.width else 1


def back_words(group: Group) -> int:
    """How many words the transposed weights of a group get: 2 for the head's, which every gradient goes through first."""
    return 2 if group.segment == "head" and all(layer.bits == 8 for layer in group.layers) else 1


def two_words(weight: F32, integers: I8, scale: F32, divisors: F32 | None = None) -> tuple[I8, F32]:
    """Integers [2·out, in] and scales [2·out] of weights of two words: each row, and what rounding took of it below.

    ``integers`` and ``scale`` are those of `quantize_weight` with 8 bits, what they lost is at most half a step, and it is
    written down in steps of 1/`STEPS`: ``W·s ≈ W_q·c + W_r·(c / STEPS)``, 5 bits more. They are no more on purpose: rows
    of larger integers would have a larger norm than the first words, which inputs are scaled for.
    """
    safe = np.where(scale > 0, scale, 1.0).astype(np.float32)
    values = weight if divisors is None else weight * divisors
    lost = values / safe[:, None] - integers
    rest = np.clip(np.rint(lost * np.float32(STEPS)), -STEPS // 2, STEPS // 2).astype(np.int8)
    return by_output(integers, rest), by_output(scale, (scale / np.float32(STEPS)).astype(np.float32))


def by_output(first: NDArray[Number], second: NDArray[Number]) -> NDArray[Number]:
    """The rows of two arrays [n, ...] of one shape in turn, [2n, ...]: the words of each output next to each other."""
    both: NDArray[Number] = np.stack([first, second], axis=1).reshape(2 * len(first), *first.shape[1:])
    return both
