"""Transposed groups: what a bundle holds besides for training, so that gradients go back through the same integer weights.

A group computes ``y = c ∘ (W_q·(x / d))``, with scales c of the outputs and divisors d of the inputs. Its gradient is
``g_x = (W_qᵀ·(c ∘ g)) / d``: a group like any other, whose divisors are 1/c and whose scales are 1/d. It takes rows of its
own, under public polynomials and a hint of its own, so noise and security are those of docs/protocol.md, sections 6 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veil.model.constants import GroupConstants
from veil.model.manifest import Group, Layer, Manifest
from veil.model.quantize import row_norms
from veil.noise import wire_bits
from veil.params import Params

I8 = NDArray[np.int8]
SUFFIX = ".transposed"


def transposed_groups(manifest: Manifest, weights: Sequence[I8], params: Params) -> tuple[Group, ...]:
    """The transposed group of each group but embeddings, the last first: gradients go that way.

    Raises `ValueError` for folded norms, whose gradient the client cannot take apart.
    """
    made = []
    for index, group in reversed(list(enumerate(manifest.groups))):
        if group.fold is not None:
            raise ValueError("folded norms cannot be trained through; compile with fold_norms='off'")
        if group.layers[0].kind == "embedding":
            continue
        name = f"{group.layers[0].name[: 256 - len(SUFFIX)]}{SUFFIX}"
        layer = Layer(name, "linear", group.rows, group.width, max(own.bits for own in group.layers), False)
        largest = float(row_norms(weights[index].T).max(initial=1.0))
        bits = wire_bits(params, group.rows, group.width, largest)
        made.append(Group((layer,), "back", None, bits.input, bits.result, transposed=index))
    return tuple(made)


def transposed_constants(own: GroupConstants, weights: I8) -> GroupConstants:
    """The constants of a group's transpose: divisors 1/c (1 for outputs that are always zero), scales 1/d, no biases.

    Gradients are scaled row by row, whether or not activations are.
    """
    width = weights.shape[1]
    divisors = 1.0 / np.where(own.scale > 0, own.scale, 1.0)
    scale = np.ones(width) if own.divisors is None else 1.0 / own.divisors
    bound = float(row_norms(weights.T).max(initial=0.0))
    return GroupConstants(
        scale.astype(np.float32), np.zeros(width, dtype=np.float32), bound, divisors=divisors.astype(np.float32)
    )
