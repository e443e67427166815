"""Public polynomials: what both sides expand from the bundle's seed. Nothing here is secret.

The uniform halves of outer ciphertexts and keys are drawn as points of the transform, where uniform is uniform too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.params import Params
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]


def inner_polynomials(seed: PublicSeed, params: Params, group: int, width: int) -> U32:
    """``a_{l,c}`` of one group of layers: [⌈width/n⌉, n], uniform modulo 2^32."""
    chunks = params.inner_chunks(width)
    return seed.words(f"inner/{group}", chunks * params.n).reshape(chunks, params.n)


def mask_half(seed: PublicSeed, params: Params, index: int) -> U32:
    """The ``a`` half of the encryption that set ``index`` of every epoch uses: points [2, N] modulo Q."""
    return np.stack([seed.uniform(f"mask/{index}/{i}", params.N, p) for i, p in enumerate(params.outer_primes)])


def key_halves(seed: PublicSeed, params: Params) -> U32:
    """The ``a`` halves of an epoch's Galois keys: points [keys, 2 digits, 3 primes, N] modulo Q·P."""
    keys = len(params.automorphisms)
    out = np.empty((keys, 2, 3, params.N), dtype=np.uint32)
    for key in range(keys):
        for digit in range(2):
            for i, p in enumerate(params.moduli):
                out[key, digit, i] = seed.uniform(f"key/{key}/{digit}/{i}", params.N, p)
    return out
