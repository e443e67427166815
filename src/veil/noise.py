"""How large the error of a decrypted result is: each formula beside its source in docs/protocol.md.

Every function returns a variance. Unless a docstring says otherwise the unit is that of the integer result modulo 2^32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.params import INNER_MODULUS_BITS, Params

_TERNARY_VARIANCE = 2.0 / 3.0
_ROUNDING = 1.0 / 12.0


def key_switch(params: Params) -> float:
    """One key switch, in units of Q: two centred digits times errors, over P, and the rounding of the ``a`` side times z."""
    digits = sum(params.N * (p**2 * _ROUNDING) * params.spec.outer_sigma**2 for p in params.outer_primes)
    return digits / params.special_prime**2 + params.N * _TERNARY_VARIANCE * _ROUNDING


def leaf(params: Params) -> float:
    """A leaf of the expansion, in units of Q: each level doubles the variance and adds a key switch to both children."""
    first = params.leaves * params.spec.outer_sigma**2
    return first + (params.leaves - 1) * key_switch(params) + _ROUNDING


def outer_product(params: Params) -> float:
    """D, in units of Q: leaves times uniform k-bit plaintexts (G of them added in each coefficient of Ĥ), G rotations."""
    plaintext = params.fold * 4.0**params.spec.result_bits * _ROUNDING
    one = params.leaves * params.N * plaintext * leaf(params)
    return params.fold * one + (params.fold - 1) * key_switch(params)


def shares(params: Params) -> float:
    """``h + μ - H·s``: the outer product, the rounding of H' times s, and the rounding of a' times z."""
    unit = 4.0 ** (INNER_MODULUS_BITS - params.spec.result_bits)
    outer = outer_product(params) * (2.0**INNER_MODULUS_BITS / params.outer_modulus) ** 2
    hint = params.n * _TERNARY_VARIANCE * _ROUNDING * unit
    public = params.N * _TERNARY_VARIANCE * _ROUNDING * 4.0 ** (INNER_MODULUS_BITS - params.spec.public_mask_bits)
    return outer + hint + public


def result_rounding(params: Params) -> float:
    """Rounding of the reply to its top k bits."""
    return _ROUNDING * 4.0 ** (INNER_MODULUS_BITS - params.spec.result_bits)


def input_error(params: Params) -> float:
    """One input value: the inner error and the rounding of b to its top k_up bits."""
    rounding = _ROUNDING * (4.0 ** (INNER_MODULUS_BITS - params.spec.input_bits) if params.spec.input_bits < 32 else 0.0)
    return params.spec.inner_sigma**2 + rounding


def result(params: Params, row_norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The decrypted ``W·x`` of rows with these norms ‖W_q,j‖₂, against the exact integer product."""
    return row_norms.astype(np.float64) ** 2 * input_error(params) + shares(params) + result_rounding(params)


def wrap_margin(params: Params, largest_norm: float) -> float:
    """How many standard deviations of error fit between the largest result and 2^31, for ``headroom`` η."""
    room = (1.0 - params.spec.headroom) * 2.0**31
    return float(room / np.sqrt(result(params, np.array([largest_norm]))[0]))
