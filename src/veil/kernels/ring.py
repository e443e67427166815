"""Everything about the two rings that follows from the parameters: tables, permutations, constants. Public, built once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from veil.kernels.tables import NttTable, ntt_table
from veil.params import Params


@dataclass(frozen=True, eq=False)
class Ring:
    """Constants that the kernels take besides their arrays; make one with `ring_of`.

    ``automorphisms`` [L, N] and ``rotations`` [G, N] are point permutations of the expansion's τ_l and the combination's
    ρ_r; ``monomials`` [L, 3, N] are the points of ``X^(-2^l)``; ``folds`` [2][G, N] those of ``Y^(-j)``.
    """

    n: int
    N: int
    fold: int
    leaves: int
    levels: int
    moduli: tuple[int, int, int]
    moduli_array: NDArray[np.uint64]
    tables: tuple[NttTable, NttTable, NttTable]
    inner_tables: tuple[NttTable, NttTable]
    automorphisms: NDArray[np.int32]
    rotations: NDArray[np.int32]
    inverse_rotations: NDArray[np.int32]
    monomials: NDArray[np.uint32]
    folds: NDArray[np.uint32]
    crt_inverse: tuple[int, int, int]


@lru_cache(maxsize=8)
def ring_of(params: Params) -> Ring:
    """The constants of a parameter set."""
    N, fold = params.N, params.fold
    moduli = params.moduli
    tables = (ntt_table(moduli[0], N), ntt_table(moduli[1], N), ntt_table(moduli[2], N))
    whole = moduli[0] * moduli[1] * moduli[2]
    first = tables[0]
    levels = range(params.levels)
    return Ring(
        n=params.n,
        N=N,
        fold=fold,
        leaves=params.leaves,
        levels=params.levels,
        moduli=moduli,
        moduli_array=np.array(moduli, dtype=np.uint64),
        tables=tables,
        inner_tables=(ntt_table(moduli[0], params.n), ntt_table(moduli[1], params.n)),
        automorphisms=np.stack([first.automorphism(N // (1 << level) + 1) for level in levels]),
        rotations=np.stack([first.automorphism(2 * r + 1) for r in range(fold)]),
        inverse_rotations=np.stack([first.automorphism(pow(2 * r + 1, -1, 2 * N)) for r in range(fold)]),
        monomials=np.stack([np.stack([table.monomial(-(1 << level)) for table in tables]) for level in levels]),
        folds=np.stack([np.stack([table.monomial(-j * (N // fold)) for j in range(fold)]) for table in tables[:2]]),
        crt_inverse=(
            pow(whole // moduli[0], -1, moduli[0]),
            pow(whole // moduli[1], -1, moduli[1]),
            pow(whole // moduli[2], -1, moduli[2]),
        ),
    )
