"""Parameter sets: what a user may write (`Spec`) and what the code uses (`Params`, checked and frozen).

Every size in veil follows from one `Params` value. `Params.from_spec` refuses a set that cannot work with
`ParameterError` and a set that works but is too weak with `InsecureParameters`. Sets for tests are named ``insecure_…``
and say so in ``security_bits`` (0).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from veil.errors import InsecureParameters, ParameterError

INNER_MODULUS_BITS = 32
"""q = 2^32: the inner layer is ``uint32`` arithmetic that wraps."""

# Largest log2 of the modulus at 128 bits of classical security for a uniform ternary secret and sigma 3.2, by degree
# (lattice-estimator 27a581b, MATZOV cost model; about the figures of ePrint 2024/463). One bit more falls below 128.
_MODULUS_BITS_AT_128 = {1024: 26, 2048: 53, 4096: 106, 8192: 214}
_TABLE_SIGMA = 3.2

# Estimates of the sets that were run through the estimator: (degree, modulus bits, sigma) -> (bits, core-SVP bits).
_ESTIMATES = {(1024, 32, 204.8): (130.9, 104.0), (4096, 84, 3.2): (165.9, 138.7)}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A parameter set as a user writes it; the defaults are the set that veil uses.

    Degrees are ring degrees (powers of four), sigmas are standard deviations of rounded Gaussians, and every ``_bits``
    field is a number of bits.
    """

    inner_degree: int = 1024
    inner_sigma: float = 204.8
    outer_degree: int = 4096
    outer_prime_bits: tuple[int, int] = (27, 27)
    special_prime_bits: int = 30
    outer_sigma: float = 3.2
    masks_per_epoch: int = 16
    result_bits: int = 18
    public_mask_bits: int = 20
    input_bits: int = 24
    skipped_levels: int = 2
    headroom: float = 0.99

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self) | {"outer_prime_bits": list(self.outer_prime_bits)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Spec:
        """The inverse of `to_dict`; an unknown or missing field raises `ParameterError`."""
        names = set(cls.__dataclass_fields__)
        if set(fields) != names:
            raise ParameterError(f"parameter fields are {sorted(fields)}, expected {sorted(names)}")
        values = dict(fields)
        values["outer_prime_bits"] = tuple(values["outer_prime_bits"])
        return cls(**values)


def modulus_bits_allowed(degree: int, sigma: float) -> float:
    """The largest log2 modulus at 128 bits for this degree and error, or 0 for a degree without an estimate."""
    base = _MODULUS_BITS_AT_128.get(degree, 0)
    return base + math.log2(sigma / _TABLE_SIGMA) if base else 0.0


@dataclass(frozen=True)
class Params:
    """A checked, immutable parameter set; make one with `default`, `from_spec` or `insecure_tiny`."""

    spec: Spec
    outer_primes: tuple[int, int]
    special_prime: int
    security_bits: float
    core_svp_bits: float

    @classmethod
    def default(cls) -> Params:
        """The set that veil uses: 130.9 bits (inner) and 165.9 bits (outer), classical, MATZOV model."""
        return cls.from_spec(Spec())

    @classmethod
    def from_spec(cls, spec: Spec) -> Params:
        """Check a set for use: `ParameterError` if it cannot work, `InsecureParameters` below 128 bits."""
        params = cls._from_valid(spec)
        outer_bits = math.log2(params.outer_modulus * params.special_prime)
        for ring, degree, bits, sigma in (
            ("inner", spec.inner_degree, float(INNER_MODULUS_BITS), spec.inner_sigma),
            ("outer", spec.outer_degree, outer_bits, spec.outer_sigma),
        ):
            allowed = modulus_bits_allowed(degree, sigma)
            if bits > allowed:
                raise InsecureParameters(
                    f"{ring} ring of degree {degree} with sigma {sigma:g} has a modulus of {bits:.1f} bits; "
                    f"128-bit security allows {allowed:.1f}"
                )
        return params

    @classmethod
    def insecure_tiny(cls, **changes: Any) -> Params:
        """Degrees 64 and 256, for tests only: the same arithmetic, no security."""
        tiny: dict[str, Any] = {"inner_degree": 64, "outer_degree": 256, "masks_per_epoch": 4}
        return cls.insecure(Spec(**(tiny | changes)))

    @classmethod
    def insecure(cls, spec: Spec) -> Params:
        """A set that is checked to work but not to be secure, for tests only; ``security_bits`` is 0."""
        valid = cls._from_valid(spec)
        return cls(spec, valid.outer_primes, valid.special_prime, 0.0, 0.0)

    @classmethod
    def _from_valid(cls, spec: Spec) -> Params:
        _check_shape(spec)
        first = _largest_prime(spec.outer_prime_bits[0], 2 * spec.outer_degree, ())
        second = _largest_prime(spec.outer_prime_bits[1], 2 * spec.outer_degree, (first,))
        special = _largest_prime(spec.special_prime_bits, 2 * spec.outer_degree, (first, second))
        inner = _ESTIMATES.get((spec.inner_degree, INNER_MODULUS_BITS, spec.inner_sigma), (128.0, 0.0))
        bits = round(math.log2(first * second * special))
        outer = _ESTIMATES.get((spec.outer_degree, bits, spec.outer_sigma), (128.0, 0.0))
        params = cls(spec, (first, second), special, min(inner[0], outer[0]), min(inner[1], outer[1]))
        if params.scale < 2**spec.result_bits:
            raise ParameterError(f"the outer modulus leaves a scale of {params.scale}, too small for the noise")
        if 2 * 128 * params.n << (INNER_MODULUS_BITS - 1) >= params.outer_modulus:
            raise ParameterError("the outer modulus is too small to lift exact products of the inner ring from it")
        if params.leaves * max(first, second) ** 2 >= 1 << 64:
            raise ParameterError(f"sums over {params.leaves} leaves do not fit 64 bits; skip more levels")
        return params

    # Sizes that follow from the spec. Symbols of docs/protocol.md in brackets.

    @property
    def n(self) -> int:
        """Inner ring degree."""
        return self.spec.inner_degree

    @property
    def N(self) -> int:
        """Outer ring degree; also the number of slots in a block."""
        return self.spec.outer_degree

    @property
    def outer_modulus(self) -> int:
        """Q, the product of the two outer primes."""
        return self.outer_primes[0] * self.outer_primes[1]

    @property
    def moduli(self) -> tuple[int, int, int]:
        """The residue number system of key switching: both outer primes, then the special prime."""
        return (*self.outer_primes, self.special_prime)

    @property
    def fold(self) -> int:
        """G = 2^g: how many coefficients of a mask one leaf of the expansion carries."""
        return 1 << self.spec.skipped_levels

    @property
    def leaves(self) -> int:
        """n / G, the number of ciphertexts after expansion."""
        return self.n // self.fold

    @property
    def levels(self) -> int:
        """L = log2(n / G), the depth of the expansion tree."""
        return self.leaves.bit_length() - 1

    @property
    def scale(self) -> int:
        """Δ = ⌊Q / 2^k⌋."""
        return self.outer_modulus >> self.spec.result_bits

    @property
    def masks_per_epoch(self) -> int:
        """M, the masks that one outer key may encrypt."""
        return self.spec.masks_per_epoch

    @cached_property
    def automorphisms(self) -> tuple[int, ...]:
        """Exponents k of X → X^k that need a Galois key: the levels of the expansion, then the combination."""
        expansion = tuple(self.N // (1 << level) + 1 for level in range(self.levels))
        combination = tuple(2 * r + 1 for r in range(1, self.fold))
        return expansion + combination

    def blocks(self, slots: int) -> int:
        """How many blocks of N slots hold this many slots."""
        return -(-slots // self.N)

    def inner_chunks(self, width: int) -> int:
        """How many inner ring elements cover an input of this width."""
        return -(-width // self.n)

    @property
    def mask_bytes(self) -> int:
        """Bytes of the upload for one mask: one polynomial modulo Q."""
        return sum(packed_bytes(self.N, prime.bit_length()) for prime in self.outer_primes)

    @property
    def epoch_key_bytes(self) -> int:
        """Bytes of the ``b`` halves of the Galois keys of one epoch."""
        one = sum(packed_bytes(self.N, prime.bit_length()) for prime in self.moduli)
        return len(self.automorphisms) * 2 * one

    def describe(self) -> list[tuple[str, str]]:
        """Rows (name, value) for a table that a person reads."""
        spec = self.spec
        p1, p2, special = self.moduli
        core = f"{self.core_svp_bits:.0f} bits (ADPS16, stricter)" if self.core_svp_bits else "not estimated"
        return [
            ("inner ring", f"degree {self.n}, modulus 2^{INNER_MODULUS_BITS}, sigma {spec.inner_sigma:g}, ternary"),
            ("outer ring", f"degree {self.N}, sigma {spec.outer_sigma:g}, ternary secret"),
            ("outer modulus", f"{p1} x {p2} ({math.log2(self.outer_modulus):.1f} bits), special prime {special}"),
            ("masks an epoch", str(self.masks_per_epoch)),
            ("bits: input / result / public mask", f"{spec.input_bits} / {spec.result_bits} / {spec.public_mask_bits}"),
            ("expansion", f"{self.leaves} leaves, {self.levels} levels, {self.fold} coefficients a leaf"),
            ("upload ahead", f"{self.mask_bytes:,} bytes a mask + {self.epoch_key_bytes:,} bytes an epoch"),
            ("security", f"{self.security_bits:.1f} bits (MATZOV cost model), core-SVP {core}"),
        ]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` words of ``bits`` each, packed without gaps."""
    return -(-count * bits // 8)


def _check_shape(spec: Spec) -> None:
    def require(ok: bool, message: str) -> None:
        if not ok:
            raise ParameterError(message)

    for name in ("inner_degree", "outer_degree"):
        degree = getattr(spec, name)
        require(64 <= degree <= 4096, f"{name} is {degree}, expected 64 to 4096")
        require(degree & (degree - 1) == 0 and degree.bit_length() % 2 == 1, f"{name} is {degree}, not a power of four")
    require(spec.inner_degree <= spec.outer_degree, "inner_degree is larger than outer_degree")
    require(len(spec.outer_prime_bits) == 2, "outer_prime_bits needs two entries")
    for bits in spec.outer_prime_bits:
        require(20 <= bits <= 27, f"outer primes of {bits} bits, expected 20 to 27 so that sums of products fit 64 bits")
    require(
        max(spec.outer_prime_bits) <= spec.special_prime_bits <= 30,
        f"special prime of {spec.special_prime_bits} bits, expected the outer primes' size to 30",
    )
    require(0 <= spec.skipped_levels <= 4, f"skipped_levels is {spec.skipped_levels}, expected 0 to 4")
    require(spec.inner_degree >> spec.skipped_levels >= 8, "skipped_levels leaves fewer than 8 leaves")
    require(1 <= spec.masks_per_epoch <= 256, f"masks_per_epoch is {spec.masks_per_epoch}, expected 1 to 256")
    require(8 <= spec.result_bits <= 24, f"result_bits is {spec.result_bits}, expected 8 to 24")
    require(
        spec.result_bits <= spec.public_mask_bits <= 24,
        f"public_mask_bits is {spec.public_mask_bits}, expected result_bits to 24",
    )
    require(16 <= spec.input_bits <= 32, f"input_bits is {spec.input_bits}, expected 16 to 32")
    require(0.5 <= spec.headroom < 1.0, f"headroom is {spec.headroom}, expected 0.5 to 1")
    for name in ("inner_sigma", "outer_sigma"):
        sigma = getattr(spec, name)
        require(1.0 <= sigma <= 4096.0, f"{name} is {sigma}, expected 1 to 4096")


def _largest_prime(bits: int, congruent_to_one_mod: int, taken: tuple[int, ...]) -> int:
    step = congruent_to_one_mod
    candidate = ((1 << bits) - 1) // step * step + 1
    while candidate >= 1 << (bits - 1):
        if candidate < 1 << bits and candidate not in taken and _is_prime(candidate):
            return candidate
        candidate -= step
    raise ParameterError(f"no prime of {bits} bits is 1 modulo {step}")


def _is_prime(value: int) -> bool:
    """Deterministic Miller-Rabin for values below 2^32 (bases 2, 7, 61)."""
    if value < 2 or value % 2 == 0:
        return value == 2
    odd, twos = value - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 7, 61):
        if base % value == 0:
            continue
        power = pow(base, odd, value)
        if power in (1, value - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % value
            if power == value - 1:
                break
        else:
            return False
    return True
