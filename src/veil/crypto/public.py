"""Public polynomials: what both sides expand from the bundle's seed. Nothing here is secret."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.params import Params
from veil.seed import PublicSeed

U32 = NDArray[np.uint32]


def inner_polynomials(seed: PublicSeed, params: Params, group: int, width: int) -> U32:
    """``a_{c,i}`` of one group of layers: [⌈width/r⌉, k, m], uniform modulo 2^32."""
    shape = (params.elements(width), params.k, params.m)
    return seed.words(f"inner/{group}", int(np.prod(shape))).reshape(shape)


def outer_polynomials(seed: PublicSeed, params: Params) -> U32:
    """The ``a_v`` of every batch's encryptions: [terms, 2, N] modulo the outer primes.

    They are drawn as points of the transform, where uniform is uniform too.
    """
    drawn = [seed.uniform(f"outer/{i}", params.terms * params.N, p) for i, p in enumerate(params.outer_primes)]
    return np.ascontiguousarray(np.stack([words.reshape(params.terms, params.N) for words in drawn], axis=1))
