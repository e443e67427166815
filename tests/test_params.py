"""Parameter sets: what is accepted, what is refused and with which of the two errors, and the sizes that follow."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

import pytest

from veil.errors import InsecureParameters, ParameterError, VeilError
from veil.params import INNER_MODULUS_BITS, Params, Spec, modulus_bits_allowed, packed_bytes

DEFAULT = Params.default()


def test_the_default_set_is_the_one_of_the_design() -> None:
    assert (DEFAULT.k, DEFAULT.m, DEFAULT.n, DEFAULT.T, DEFAULT.r) == (3, 512, 1536, 64, 8)
    assert (DEFAULT.N, DEFAULT.w, DEFAULT.terms) == (2048, 32, 24)
    assert DEFAULT.prime_bits == 23
    p1, p2 = DEFAULT.outer_primes
    assert p2 < p1 < DEFAULT.spec.outer_prime_limit
    for p in (p1, p2, DEFAULT.mu_prime):
        assert p % (2 * DEFAULT.N) == 1 and is_prime(p)
    assert DEFAULT.outer_modulus == p1 * p2
    assert DEFAULT.scale == math.floor(DEFAULT.outer_modulus / 2**20 + 0.5)
    assert [p.bit_length() for p in DEFAULT.outer_primes] == [23, 23]


def is_prime(value: int) -> bool:
    return all(value % divisor for divisor in range(2, math.isqrt(value) + 1))


def test_the_primes_are_the_largest_that_there_are() -> None:
    """Both sides and every bundle depend on these two; another choice would need another format."""
    p1, p2 = DEFAULT.outer_primes
    between = [p for p in range(p2 + 1, DEFAULT.spec.outer_prime_limit) if p % (2 * DEFAULT.N) == 1 and is_prime(p)]
    assert between == [p1]


def test_products_with_the_public_tables_are_exact_modulo_the_third_prime() -> None:
    """``a'·z`` is at most N·2^(ℓ_a - 1) in size, which is less than a half of its prime."""
    assert DEFAULT.N << (DEFAULT.spec.public_bits - 1) < 1 << 32
    assert 4 * DEFAULT.N * DEFAULT.N * 2 ** (2 * DEFAULT.spec.public_bits) > DEFAULT.mu_prime


def test_the_default_set_has_the_estimates_of_the_design() -> None:
    """The weaker of the two problems, by each measure; both above 128 bits."""
    assert DEFAULT.security_bits == 155.6
    assert DEFAULT.core_svp_bits == 128.2


def test_sizes_are_those_of_the_protocol() -> None:
    assert DEFAULT.batch_bytes == 24 * 2 * 2048 * 23 // 8
    assert DEFAULT.batch_bytes / DEFAULT.T == 4416
    assert [DEFAULT.blocks(slots) for slots in (0, 1, 32, 33)] == [0, 1, 1, 2]
    assert [DEFAULT.elements(width) for width in (1, 8, 9)] == [1, 1, 2]
    assert [packed_bytes(count, 18) for count in (0, 1, 4, 5)] == [0, 3, 9, 12]


PRESETS: dict[str, dict[str, Any]] = {
    "the default": {},
    "a larger inner rank": {"inner_rank": 4},
    "one ring of 2048": {"inner_rank": 1, "inner_degree": 2048},
    "half the rows": {"batch_rows": 32},
    "twice the rows": {"batch_rows": 128},
    "a larger outer ring": {"outer_degree": 4096},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_accepted(name: str) -> None:
    params = Params.from_spec(Spec(**PRESETS[name]))
    assert params.security_bits >= 128
    assert params.r * params.T == params.m
    assert params.w * params.T == params.N
    assert params.terms == params.k * params.r == params.n // params.T


WEAK: list[tuple[dict[str, Any], str]] = [
    ({"inner_rank": 2}, "inner"),
    ({"inner_degree": 256}, "inner"),
    ({"inner_rank": 5, "inner_degree": 256}, "inner"),
    ({"inner_sigma": 1.2}, "inner"),
    ({"outer_degree": 1024}, "outer"),
    ({"outer_sigma": 3.0, "outer_prime_limit": 4_700_000}, "outer"),
    ({"outer_prime_limit": 1 << 23}, "outer"),
]


@pytest.mark.parametrize(("changes", "problem"), WEAK, ids=str)
def test_a_weak_set_is_refused_as_insecure(changes: dict[str, Any], problem: str) -> None:
    spec = Spec(**changes)
    with pytest.raises(InsecureParameters, match=f"the {problem} problem .* 128-bit security allows"):
        Params.from_spec(spec)
    insecure = Params.insecure(spec)
    assert insecure.security_bits == 0
    assert insecure.core_svp_bits == 0


def table() -> dict[int, float]:
    found: dict[int, float] = vars(sys.modules[Params.__module__])["_MODULUS_BITS_AT_128"]
    return found


def test_the_table_allows_a_bit_for_each_doubling_of_the_error() -> None:
    for dimension, bits in table().items():
        assert modulus_bits_allowed(dimension, 3.2) == bits
        assert modulus_bits_allowed(dimension, 6.4) == pytest.approx(bits + 1)
    assert modulus_bits_allowed(512, 1e9) == 0
    assert modulus_bits_allowed(1535, 3.2) == 0


@pytest.mark.parametrize(
    ("problem", "dimension", "bits"),
    [("inner", 1536, float(INNER_MODULUS_BITS)), ("outer", 2048, math.log2(DEFAULT.outer_modulus))],
)
def test_one_bit_more_than_the_table_allows_is_refused(
    problem: str, dimension: int, bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default with a bound at its modulus is accepted; one bit less room, and it is not."""
    monkeypatch.setitem(table(), dimension, bits)
    assert Params.from_spec(Spec()) == DEFAULT
    monkeypatch.setitem(table(), dimension, bits - 1)
    with pytest.raises(InsecureParameters, match=f"the {problem} problem of dimension {dimension}"):
        Params.from_spec(Spec())
    monkeypatch.setitem(table(), dimension, bits - 1e-6)
    with pytest.raises(InsecureParameters):
        Params.from_spec(Spec())


def test_one_bit_less_of_error_than_the_bound_is_refused() -> None:
    """The inner problem has room down to this sigma, and none below it."""
    least = 3.2 * 2 ** (INNER_MODULUS_BITS - modulus_bits_allowed(1536, 3.2))
    assert Params.from_spec(Spec(inner_sigma=least + 1e-9)).spec.inner_sigma >= least
    with pytest.raises(InsecureParameters, match="inner problem"):
        Params.from_spec(Spec(inner_sigma=least - 1e-9))


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"inner_degree": 1000}, "inner_degree is 1000"),
    ({"inner_degree": 8}, "inner_degree is 8, expected 16 to 4096"),
    ({"inner_degree": 8192}, "inner_degree is 8192"),
    ({"inner_degree": 512.0}, "inner_degree is 512.0"),
    ({"outer_degree": 2000}, "outer_degree is 2000, not a power of two"),
    ({"outer_degree": 32}, "outer_degree is 32"),
    ({"outer_degree": 16384}, "outer_degree is 16384"),
    ({"batch_rows": 1}, "batch_rows is 1,"),
    ({"batch_rows": 48}, "batch_rows is 48, not a power of two"),
    ({"batch_rows": 2048}, "batch_rows is 2048"),
    ({"batch_rows": 1024}, "larger than inner_degree"),
    ({"batch_rows": 128, "outer_degree": 64}, "larger than outer_degree"),
    ({"inner_rank": 0}, "inner_rank is 0"),
    ({"inner_rank": 17}, "inner_rank is 17"),
    ({"outer_prime_limit": (17 << 18) - 1}, "outer_prime_limit is"),
    ({"outer_prime_limit": (1 << 23) + 1}, "outer_prime_limit is"),
    ({"hint_bits": 11}, "hint_bits is 11"),
    ({"hint_bits": 25}, "hint_bits is 25"),
    ({"public_bits": 11}, "public_bits is 11"),
    ({"public_bits": 23}, "public_bits is 23"),
    ({"signal_db": 9.9}, "signal_db is 9.9"),
    ({"signal_db": math.nan}, "signal_db is nan"),
    ({"headroom": 1.0}, "headroom is 1.0"),
    ({"headroom": 0.4}, "headroom is 0.4"),
    ({"headroom": math.nan}, "headroom is nan"),
    ({"inner_sigma": 0.5}, "inner_sigma is 0.5"),
    ({"inner_sigma": 204.8}, "inner_sigma is 204.8"),
    ({"inner_sigma": math.nan}, "inner_sigma is nan"),
    ({"outer_sigma": math.inf}, "outer_sigma is inf"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID, ids=str)
def test_a_set_that_cannot_work_is_refused_as_invalid(changes: dict[str, Any], message: str) -> None:
    for make in (Params.from_spec, Params.insecure):
        with pytest.raises(ParameterError, match=message) as caught:
            make(Spec(**changes))
        assert not isinstance(caught.value, InsecureParameters)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, VeilError)


def test_an_outer_modulus_too_small_for_exact_products_is_refused() -> None:
    """``A·s`` has coefficients up to n·2^31, lifted from Q: n·2^32 must stay below it."""
    with pytest.raises(ParameterError, match="outer modulus is too small"):
        Params.insecure(Spec(inner_rank=2, inner_degree=4096))
    works = Params.insecure(Spec(inner_rank=1, inner_degree=4096))
    assert works.n << 32 < works.outer_modulus


def test_every_set_keeps_its_sums_below_a_word_of_64_bits() -> None:
    """``terms`` products of two outer residues are summed without a reduction."""
    largest = Params.insecure(Spec(inner_degree=4096, inner_rank=1, batch_rows=2, outer_prime_limit=1 << 23))
    assert largest.terms == 2048
    assert largest.terms * largest.outer_primes[0] ** 2 < 1 << 63


def test_tiny_sets_say_that_they_are_insecure() -> None:
    tiny = Params.insecure_tiny()
    assert (tiny.k, tiny.m, tiny.N, tiny.T, tiny.w, tiny.security_bits) == (3, 32, 128, 8, 16, 0)
    assert Params.insecure_tiny(batch_rows=16).T == 16
    with pytest.raises(InsecureParameters):
        Params.from_spec(tiny.spec)


def test_sets_are_frozen_and_compare_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.spec = Spec(inner_sigma=3.2)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.spec.inner_sigma = 1.0  # type: ignore[misc]
    assert Params.default() == DEFAULT
    assert hash(Params.default()) == hash(DEFAULT)
    assert Params.insecure_tiny() != DEFAULT
    assert Params.insecure(Spec()) != DEFAULT


def test_a_spec_survives_json() -> None:
    spec = Spec(inner_degree=256, hint_bits=19, headroom=0.9)
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_with_an_unknown_or_missing_field_is_refused() -> None:
    fields = Spec().to_dict()
    with pytest.raises(ParameterError, match="parameter fields"):
        Spec.from_dict(fields | {"extra": 1})
    del fields["headroom"]
    with pytest.raises(ParameterError, match="parameter fields"):
        Spec.from_dict(fields)


@pytest.mark.parametrize("field", Spec().to_dict())
@pytest.mark.parametrize("value", [None, "3", [3], {}, 10**400, -1, True], ids=lambda value: str(value)[:8])
def test_a_field_of_another_type_or_size_is_a_parameter_error(field: str, value: Any) -> None:
    """A bundle's header comes from somebody else."""
    with pytest.raises(ParameterError):
        Params.insecure(Spec.from_dict(Spec().to_dict() | {field: value}))


def test_the_description_names_the_sizes_and_the_security() -> None:
    rows = dict(DEFAULT.describe())
    assert "156 bits" in rows["security"]
    assert "128 bits" in rows["security"]
    assert "282,624 bytes a batch, 4,416 a row" in rows["offline upload"]
    assert "64" in rows["rows a batch"]
    assert "3 × degree 512" in rows["inner problem"]
    assert "not estimated" in dict(Params.insecure_tiny().describe())["security"]
