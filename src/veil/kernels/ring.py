"""The two rings' sizes, transforms and constants, which follow from the parameters. Public, built once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from veil.kernels.tables import NttTable, ntt_table
from veil.params import Params

FRACTION_BITS = 54
"""Bits of the fixed-point fractions x/p by which a value modulo Q is switched to a power of two."""


@dataclass(frozen=True, eq=False)
class Ring:
    """Constants that the kernels take besides their arrays; make one with `ring_of`. Letters as in docs/protocol.md.

    ``outer`` and ``inner`` are transforms of degree N and m modulo both outer primes, ``mu`` is one of degree N modulo
    `Params.mu_prime`. ``crt`` are ``(Q/p_i)^-1 mod p_i`` and ``fractions`` ``⌊2^54/p_i⌋``.
    """

    k: int
    m: int
    r: int
    T: int
    N: int
    w: int
    terms: int
    scale: int
    hint_bits: int
    public_bits: int
    prime_bits: int
    batch_bytes: int
    primes: tuple[int, int]
    outer: tuple[NttTable, NttTable]
    inner: tuple[NttTable, NttTable]
    mu: NttTable
    crt: tuple[int, int]
    fractions: tuple[int, int]

    @property
    def n(self) -> int:
        """Inner dimension."""
        return self.k * self.m


@lru_cache(maxsize=8)
def ring_of(params: Params) -> Ring:
    """The constants of a parameter set."""
    p1, p2 = params.outer_primes
    return Ring(
        k=params.k,
        m=params.m,
        r=params.r,
        T=params.T,
        N=params.N,
        w=params.w,
        terms=params.terms,
        scale=params.scale,
        hint_bits=params.spec.hint_bits,
        public_bits=params.spec.public_bits,
        batch_bytes=params.batch_bytes,
        prime_bits=params.prime_bits,
        primes=(p1, p2),
        outer=(ntt_table(p1, params.N), ntt_table(p2, params.N)),
        inner=(ntt_table(p1, params.m), ntt_table(p2, params.m)),
        mu=ntt_table(params.mu_prime, params.N),
        crt=(pow(p2, -1, p1), pow(p1, -1, p2)),
        fractions=((1 << FRACTION_BITS) // p1, (1 << FRACTION_BITS) // p2),
    )
