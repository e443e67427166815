"""How large the error of a decrypted result is, and how many bits of the wire that allows. Sections: docs/protocol.md.

Every function returns a variance unless it says otherwise. The unit is that of the integer result modulo 2^32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from veil.params import INNER_MODULUS_BITS, Params, packed_bytes

_TERNARY = 2.0 / 3.0
_ROUNDING = 1.0 / 12.0
_WHOLE = 2.0**INNER_MODULUS_BITS

INPUT_BITS = range(12, INNER_MODULUS_BITS + 1)
RESULT_BITS = range(8, 25)


class WireBits(NamedTuple):
    """Bits of each value of a group that goes up, and of each result that comes down."""

    input: int
    result: int


TYPICAL_BITS = WireBits(23, 14)
"""Those of a group of middling width, for what is chosen before the bits are."""


def outer_error(params: Params) -> float:
    """Σ_v G_v·e_v: N·k·r uniform ℓ_h-bit coefficients times errors (6.1), and H·s times what rounding Δ loses (6.2)."""
    spec = params.spec
    hint = 4.0**spec.hint_bits * _ROUNDING
    errors = params.terms * params.N * hint * spec.outer_sigma**2 * (_WHOLE / params.outer_modulus) ** 2
    lost = params.scale * 2.0**spec.hint_bits / params.outer_modulus - 1.0
    return errors + params.n * _TERNARY * hint * (lost * 2.0 ** (INNER_MODULUS_BITS - spec.hint_bits)) ** 2


def hint_rounding(params: Params) -> float:
    """The rounding of H to ℓ_h bits, times s (6.3)."""
    return params.n * _TERNARY * _ROUNDING * 4.0 ** (INNER_MODULUS_BITS - params.spec.hint_bits)


def public_rounding(params: Params) -> float:
    """The rounding of a' to ℓ_a bits, times z (6.4)."""
    return params.N * _TERNARY * _ROUNDING * 4.0 ** (INNER_MODULUS_BITS - params.spec.public_bits)


def shares(params: Params) -> float:
    """``h + μ - H·s`` (6.5)."""
    return outer_error(params) + hint_rounding(params) + public_rounding(params)


def rounding(bits: int) -> float:
    """The mean square of rounding a whole word to its top ``bits``, halves up: (4^k + 2)/12 for the k bits that go."""
    return _ROUNDING * (4.0 ** (INNER_MODULUS_BITS - bits) + 2.0) if bits < INNER_MODULUS_BITS else 0.0


def inner_error(params: Params) -> float:
    """A rounded Gaussian of the inner deviation."""
    return params.spec.inner_sigma**2 + _ROUNDING


def input_error(params: Params, bits: int) -> float:
    """One input value: the inner error, and the rounding of b to its top ``bits`` (6.6)."""
    return inner_error(params) + rounding(bits)


def result(params: Params, row_norms: NDArray[np.float64], bits: WireBits) -> NDArray[np.float64]:
    """Of the decrypted ``W·x`` of slots with these norms ‖W_q,j‖₂ [slots], against the exact integer product (6.7)."""
    return row_norms.astype(np.float64) ** 2 * input_error(params, bits.input) + shares(params) + rounding(bits.result)


def signal(params: Params, width: int) -> float:
    """A slot of the largest norm, for inputs of random signs: ``(η·2^31)²/width`` (6.8)."""
    return (params.spec.headroom * 2.0 ** (INNER_MODULUS_BITS - 1)) ** 2 / width


def signal_to_noise_db(params: Params, width: int, norm: float, bits: WireBits) -> float:
    """Decibels between `signal` and `result` of a slot of this norm, the largest of its group."""
    return 10.0 * math.log10(signal(params, width) / float(result(params, np.array([norm]), bits)[0]))


def wire_bits(params: Params, width: int, slots: int, norm: float) -> WireBits:
    """The bits that cost a group the fewest bytes and keep ``signal_db`` for its slot of the largest norm.

    Where no bits do (the shares' error alone is larger), those that lose at most a tenth of a decibel to them.
    """
    noise = signal(params, width) / 10.0 ** (params.spec.signal_db / 10.0)
    floor = norm**2 * inner_error(params) + shares(params)
    allowed = max(noise, floor * 10.0**0.01)
    best: tuple[int, WireBits] | None = None
    for up in INPUT_BITS:
        left = allowed - floor - norm**2 * rounding(up)
        if left <= 0.0:
            continue
        down = next((bits for bits in RESULT_BITS if rounding(bits) <= left), None)
        if down is None:
            continue
        cost = packed_bytes(width, up) + packed_bytes(slots, down)
        if best is None or cost < best[0]:
            best = cost, WireBits(up, down)
    return best[1] if best else WireBits(INPUT_BITS[-1], RESULT_BITS[-1])


def wrap_margin(params: Params, largest_norm: float, bits: WireBits) -> float:
    """How many standard deviations of error fit between the largest result and 2^31, for ``headroom`` η."""
    room = (1.0 - params.spec.headroom) * 2.0 ** (INNER_MODULUS_BITS - 1)
    return float(room / np.sqrt(result(params, np.array([largest_norm]), bits)[0]))
