"""Parameter sets: what a user may write (`Spec`) and what the code uses (`Params`, checked and frozen).

Every size in veil follows from one `Params` value. `Params.from_spec` refuses a set that cannot work with
`ParameterError` and a set that works but is too weak with `InsecureParameters`. Sets for tests are named ``insecure_…``
and say so in ``security_bits`` (0).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from veil.errors import InsecureParameters, ParameterError

INNER_MODULUS_BITS = 32
"""q = 2^32: the inner layer is ``uint32`` arithmetic that wraps."""

# Largest log2 of the modulus at 128 bits by classical core-SVP *and* by MATZOV, for a uniform ternary secret and an error
# of sigma 3.2, by dimension (lattice-estimator; bench/security.py makes them again). What is above is refused.
_MODULUS_BITS_AT_128 = {1024: 22.2, 1280: 27.75, 1536: 33.3, 2048: 44.3, 4096: 88.4}
_TABLE_SIGMA = 3.2

# Estimates of the sets that were run through the estimator: (dimension, modulus bits, sigma) -> (MATZOV, core-SVP bits).
_ESTIMATES = {(1536, 32, 3.2): (161.1, 134.6), (2048, 44, 3.2): (155.6, 128.2)}

_MU_PRIME_LIMIT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A parameter set as a user writes it; the defaults are the set that veil uses.

    The inner problem is module LWE of ``inner_rank`` ring elements of degree ``inner_degree``; the outer one is ring LWE.
    Degrees are powers of two, sigmas are standard deviations of rounded Gaussians, ``_bits`` fields are numbers of bits.
    ``signal_db`` is what the bits of the wire are chosen for: see `veil.noise.wire_bits`.
    """

    inner_rank: int = 3
    inner_degree: int = 512
    inner_sigma: float = 3.2
    batch_rows: int = 64
    outer_degree: int = 2048
    outer_prime_limit: int = 4_570_000
    outer_sigma: float = 3.2
    hint_bits: int = 20
    public_bits: int = 21
    signal_db: float = 52.0
    headroom: float = 0.99

    def to_dict(self) -> dict[str, float]:
        """The fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Spec:
        """The inverse of `to_dict`; an unknown or missing field raises `ParameterError`."""
        names = set(cls.__dataclass_fields__)
        if set(fields) != names:
            raise ParameterError(f"parameter fields are {sorted(fields)}, expected {sorted(names)}")
        return cls(**fields)


def modulus_bits_allowed(dimension: int, sigma: float) -> float:
    """The largest log2 modulus at 128 bits for this dimension and error, or 0 for a dimension without an estimate."""
    base = _MODULUS_BITS_AT_128.get(dimension, 0.0)
    return base + math.log2(sigma / _TABLE_SIGMA) if base else 0.0


@dataclass(frozen=True)
class Params:
    """A checked, immutable parameter set; make one with `default`, `from_spec` or `insecure_tiny`.

    ``outer_primes`` are those of Q; ``mu_prime`` is the one that the client's products ``a'·z`` are computed modulo.
    """

    spec: Spec
    outer_primes: tuple[int, int]
    mu_prime: int
    security_bits: float
    core_svp_bits: float

    @classmethod
    def default(cls) -> Params:
        """The set that veil uses; its security stands in docs/parameters.md."""
        return cls.from_spec(Spec())

    @classmethod
    def from_spec(cls, spec: Spec) -> Params:
        """Check a set for use: `ParameterError` if it cannot work, `InsecureParameters` below 128 bits."""
        if not isinstance(spec, Spec):
            raise TypeError(f"spec is a {type(spec).__name__}, expected veil.Spec")
        params = cls._from_valid(spec)
        for problem, dimension, bits, sigma in (
            ("inner", params.n, float(INNER_MODULUS_BITS), spec.inner_sigma),
            ("outer", params.N, math.log2(params.outer_modulus), spec.outer_sigma),
        ):
            allowed = modulus_bits_allowed(dimension, sigma)
            if bits > allowed:
                raise InsecureParameters(
                    f"the {problem} problem of dimension {dimension} with sigma {sigma:g} has a modulus of {bits:.2f} bits; "
                    f"128-bit security allows {allowed:.2f}"
                )
        return params

    @classmethod
    def insecure_tiny(cls, **changes: float) -> Params:
        """Inner 3 × 32, outer 128 and batches of 8 rows, for tests only: the same arithmetic, no security."""
        tiny: dict[str, float] = {"inner_degree": 32, "outer_degree": 128, "batch_rows": 8}
        return cls.insecure(Spec.from_dict(asdict(Spec()) | tiny | changes))

    @classmethod
    def insecure(cls, spec: Spec) -> Params:
        """A set that is checked to work but not to be secure, for tests only; ``security_bits`` is 0."""
        valid = cls._from_valid(spec)
        return cls(spec, valid.outer_primes, valid.mu_prime, 0.0, 0.0)

    @classmethod
    def _from_valid(cls, spec: Spec) -> Params:
        _check_shape(spec)
        roots = 2 * max(spec.outer_degree, spec.inner_degree)
        first = _largest_prime(spec.outer_prime_limit, roots)
        second = _largest_prime(first, roots)
        mu_prime = _largest_prime(_MU_PRIME_LIMIT, 2 * spec.outer_degree)
        n = spec.inner_rank * spec.inner_degree
        inner = _ESTIMATES.get((n, INNER_MODULUS_BITS, spec.inner_sigma), (128.0, 0.0))
        outer = _ESTIMATES.get((spec.outer_degree, round(math.log2(first * second)), spec.outer_sigma), (128.0, 0.0))
        params = cls(spec, (first, second), mu_prime, min(inner[0], outer[0]), min(inner[1], outer[1]))
        if params.outer_modulus <= n << INNER_MODULUS_BITS:
            raise ParameterError("the outer modulus is too small to lift exact products of the inner ring from it")
        if params.terms * first**2 >= 1 << 63:
            raise ParameterError(f"sums over {params.terms} products do not fit 64 bits; use smaller primes")
        return params

    # Sizes that follow from the spec. Symbols of docs/protocol.md in brackets.

    @property
    def n(self) -> int:
        """Inner dimension, rank times degree."""
        return self.spec.inner_rank * self.spec.inner_degree

    @property
    def k(self) -> int:
        """Inner rank: ring elements of a secret."""
        return self.spec.inner_rank

    @property
    def m(self) -> int:
        """Inner ring degree."""
        return self.spec.inner_degree

    @property
    def T(self) -> int:
        """Rows of a batch, which share one secret."""
        return self.spec.batch_rows

    @property
    def r(self) -> int:
        """Inputs of each row that one ring element masks, m / T."""
        return self.m // self.T

    @property
    def N(self) -> int:
        """Outer ring degree."""
        return self.spec.outer_degree

    @property
    def w(self) -> int:
        """Slots that one outer ring element carries, N / T: a block."""
        return self.N // self.T

    @property
    def terms(self) -> int:
        """k·r: products in the subring, and encryptions a batch."""
        return self.k * self.r

    @property
    def outer_modulus(self) -> int:
        """Q, the product of the two outer primes."""
        return self.outer_primes[0] * self.outer_primes[1]

    @property
    def scale(self) -> int:
        """Δ = round(Q / 2^ℓ_h)."""
        bits = self.spec.hint_bits
        return (self.outer_modulus + (1 << (bits - 1))) >> bits

    def blocks(self, slots: int) -> int:
        """How many blocks of w slots hold this many slots."""
        return -(-slots // self.w)

    def elements(self, width: int) -> int:
        """How many inner ring elements mask an input of this width."""
        return -(-width // self.r)

    @property
    def prime_bits(self) -> int:
        """Bits of a packed residue."""
        return self.outer_primes[0].bit_length()

    @property
    def batch_bytes(self) -> int:
        """Bytes of the upload for one batch: k·r polynomials modulo Q."""
        return self.terms * 2 * packed_bytes(self.N, self.prime_bits)

    def describe(self) -> list[tuple[str, str]]:
        """Rows (name, value) for a table that a person reads."""
        spec = self.spec
        p1, p2 = self.outer_primes
        core = f"{self.core_svp_bits:.0f} bits" if self.core_svp_bits else "not estimated"
        return [
            (
                "inner problem",
                f"module LWE, {self.k} × degree {self.m}, modulus 2^{INNER_MODULUS_BITS}, "
                f"sigma {spec.inner_sigma:g}, ternary secret",
            ),
            ("outer problem", f"ring LWE, degree {self.N}, sigma {spec.outer_sigma:g}, ternary secret"),
            ("outer modulus", f"{p1} x {p2} ({math.log2(self.outer_modulus):.2f} bits)"),
            ("rows a batch", f"{self.T}, under one secret"),
            ("bits: hint / public shares", f"{spec.hint_bits} / {spec.public_bits}"),
            ("bits of the wire", f"by group, the fewest that keep {spec.signal_db:g} dB of signal to noise"),
            ("offline upload", f"{self.batch_bytes:,} bytes a batch, {self.batch_bytes / self.T:,.0f} a row"),
            ("security", f"{self.security_bits:.0f} bits (MATZOV), classical core-SVP {core}"),
        ]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` words of ``bits`` each, packed without gaps."""
    return -(-count * bits // 8)


def _check_shape(spec: Spec) -> None:
    def require(ok: bool, message: str) -> None:
        if not ok:
            raise ParameterError(message)

    for name, field in Spec.__dataclass_fields__.items():
        value = getattr(spec, name)
        kinds = (int,) if field.type == "int" else (int, float)
        require(type(value) in kinds, f"{name} is {value!r}, expected a number of type {field.type}")
    for name, least, most in (("inner_degree", 16, 4096), ("outer_degree", 64, 8192), ("batch_rows", 2, 1024)):
        value = getattr(spec, name)
        require(least <= value <= most, f"{name} is {value}, expected {least} to {most}")
        require(value & (value - 1) == 0, f"{name} is {value}, not a power of two")
    require(1 <= spec.inner_rank <= 16, f"inner_rank is {spec.inner_rank}, expected 1 to 16")
    require(spec.batch_rows <= spec.inner_degree, "batch_rows is larger than inner_degree")
    require(spec.batch_rows <= spec.outer_degree, "batch_rows is larger than outer_degree")
    require(
        17 << 18 <= spec.outer_prime_limit <= 1 << 23,
        f"outer_prime_limit is {spec.outer_prime_limit}, expected 17·2^18 to 2^23, so that a residue has 23 bits",
    )
    require(12 <= spec.hint_bits <= 24, f"hint_bits is {spec.hint_bits}, expected 12 to 24")
    require(12 <= spec.public_bits <= 22, f"public_bits is {spec.public_bits}, expected 12 to 22")
    require(10.0 <= spec.signal_db <= 90.0, f"signal_db is {spec.signal_db}, expected 10 to 90")
    require(0.5 <= spec.headroom < 1.0, f"headroom is {spec.headroom}, expected 0.5 to 1")
    for name in ("inner_sigma", "outer_sigma"):
        sigma = getattr(spec, name)
        require(1.0 <= sigma <= 12.0, f"{name} is {sigma}, expected 1 to 12")


def _largest_prime(below: int, step: int) -> int:
    """The largest prime below a bound that is 1 modulo ``step``."""
    candidate = (below - 2) // step * step + 1
    while candidate > step:
        if _is_prime(candidate):
            return candidate
        candidate -= step
    raise ParameterError(f"no prime below {below} is 1 modulo {step}")


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
