"""Parameter sets: what is accepted, what is refused and with which of the two errors, and the sizes that follow."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from veil.errors import InsecureParameters, ParameterError, VeilError
from veil.params import Params, Spec, modulus_bits_allowed

DEFAULT = Params.default()


def test_the_default_set_is_the_one_of_the_design() -> None:
    assert (DEFAULT.n, DEFAULT.N, DEFAULT.fold, DEFAULT.leaves, DEFAULT.levels) == (1024, 4096, 4, 256, 8)
    assert DEFAULT.masks_per_epoch == 16
    assert [p.bit_length() for p in DEFAULT.moduli] == [27, 27, 30]
    assert len(set(DEFAULT.moduli)) == 3
    assert all(p % (2 * DEFAULT.N) == 1 and is_prime(p) for p in DEFAULT.moduli)
    assert DEFAULT.outer_modulus == DEFAULT.outer_primes[0] * DEFAULT.outer_primes[1]
    assert DEFAULT.scale == DEFAULT.outer_modulus // 2**18


def is_prime(value: int) -> bool:
    return all(value % divisor for divisor in range(2, math.isqrt(value) + 1))


def test_the_default_set_has_the_estimates_of_the_design() -> None:
    assert DEFAULT.security_bits == 130.9
    assert DEFAULT.core_svp_bits == 104.0


def test_sizes_are_those_of_the_protocol() -> None:
    assert len(DEFAULT.automorphisms) == 11
    assert DEFAULT.epoch_key_bytes == 946_176
    assert DEFAULT.mask_bytes == 27_648
    assert DEFAULT.automorphisms == (4097, 2049, 1025, 513, 257, 129, 65, 33, 3, 5, 7)
    assert [DEFAULT.blocks(slots) for slots in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
    assert [DEFAULT.inner_chunks(width) for width in (1, 1024, 1025)] == [1, 1, 2]


WEAK: list[dict[str, Any]] = [
    {"inner_sigma": 204.7},
    {"inner_sigma": 102.4},
    {"inner_sigma": 3.2},
    {"inner_degree": 256},
    {"inner_degree": 256, "inner_sigma": 4096.0},
    {"outer_degree": 1024},
    {"outer_degree": 1024, "inner_degree": 256},
    {"outer_sigma": 1.0, "outer_degree": 1024},
]


@pytest.mark.parametrize("changes", WEAK, ids=str)
def test_a_weak_set_is_refused_as_insecure(changes: dict[str, Any]) -> None:
    spec = Spec(**changes)
    with pytest.raises(InsecureParameters, match="128-bit security allows"):
        Params.from_spec(spec)
    insecure = Params.insecure(spec)
    assert insecure.security_bits == 0
    assert insecure.core_svp_bits == 0


def test_one_bit_more_than_the_table_allows_is_refused() -> None:
    """Each degree at its largest modulus of ePrint 2024/463, then a hair above it."""
    for degree, bits in ((1024, 26), (2048, 53), (4096, 106)):
        assert modulus_bits_allowed(degree, 3.2) == bits
        assert modulus_bits_allowed(degree, 6.4) == pytest.approx(bits + 1)
    assert modulus_bits_allowed(512, 1e9) == 0
    twice = Spec(inner_sigma=3.2 * 2**6)
    assert Params.from_spec(twice).spec.inner_sigma == 204.8
    with pytest.raises(InsecureParameters, match="inner ring"):
        Params.from_spec(dataclasses.replace(twice, inner_sigma=3.2 * 2**5))


def test_an_outer_modulus_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default uses 84 of 106 bits; no valid set of its degree reaches past them, so here the bound moves."""
    outer_bits = math.log2(DEFAULT.outer_modulus * DEFAULT.special_prime)
    monkeypatch.setitem(globals_of(Params)["_MODULUS_BITS_AT_128"], 4096, math.ceil(outer_bits))
    assert Params.from_spec(Spec()) == DEFAULT
    monkeypatch.setitem(globals_of(Params)["_MODULUS_BITS_AT_128"], 4096, math.ceil(outer_bits) - 1)
    with pytest.raises(InsecureParameters, match="outer ring"):
        Params.from_spec(Spec())
    assert Params.from_spec(Spec(special_prime_bits=29)).moduli[2].bit_length() == 29


def globals_of(owner: type) -> dict[str, Any]:
    import sys

    return vars(sys.modules[owner.__module__])


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"inner_degree": 1000}, "inner_degree is 1000"),
    ({"inner_degree": 2048}, "not a power of four"),
    ({"inner_degree": 16}, "inner_degree is 16"),
    ({"outer_degree": 16384}, "outer_degree is 16384"),
    ({"inner_degree": 4096, "outer_degree": 1024}, "larger than outer_degree"),
    ({"outer_prime_bits": (27,)}, "two entries"),
    ({"outer_prime_bits": (28, 27)}, "28 bits"),
    ({"outer_prime_bits": (19, 27)}, "19 bits"),
    ({"special_prime_bits": 31}, "31 bits"),
    ({"special_prime_bits": 26}, "26 bits"),
    ({"skipped_levels": -1}, "skipped_levels is -1"),
    ({"skipped_levels": 5}, "skipped_levels is 5"),
    ({"inner_degree": 64, "skipped_levels": 4}, "fewer than 8 leaves"),
    ({"masks_per_epoch": 0}, "masks_per_epoch is 0"),
    ({"masks_per_epoch": 257}, "masks_per_epoch is 257"),
    ({"result_bits": 7}, "result_bits is 7"),
    ({"result_bits": 25}, "result_bits is 25"),
    ({"public_mask_bits": 17}, "public_mask_bits is 17"),
    ({"public_mask_bits": 25}, "public_mask_bits is 25"),
    ({"input_bits": 15}, "input_bits is 15"),
    ({"input_bits": 33}, "input_bits is 33"),
    ({"headroom": 1.0}, "headroom is 1.0"),
    ({"headroom": 0.4}, "headroom is 0.4"),
    ({"headroom": math.nan}, "headroom is nan"),
    ({"inner_sigma": 0.5}, "inner_sigma is 0.5"),
    ({"inner_sigma": math.nan}, "inner_sigma is nan"),
    ({"outer_sigma": math.inf}, "outer_sigma is inf"),
    ({"outer_prime_bits": (20, 20), "result_bits": 24, "public_mask_bits": 24}, "modulus"),
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
    """Products with the inner matrices are lifted from Q: ``128·n·2^31`` must stay below Q/2."""
    with pytest.raises(ParameterError, match="outer modulus"):
        Params.insecure(Spec(outer_prime_bits=(22, 22), result_bits=16))
    works = Params.insecure(Spec(outer_prime_bits=(25, 25)))
    assert 2 * 128 * works.n << 31 < works.outer_modulus


def test_more_leaves_than_a_sum_of_64_bits_holds_are_refused() -> None:
    """``leaves`` products of two outer residues are summed without a reduction."""
    with pytest.raises(ParameterError, match="leaves"):
        Params.from_spec(Spec(inner_degree=4096, skipped_levels=1))
    assert Params.from_spec(Spec(inner_degree=4096, skipped_levels=2)).leaves == 1024


def test_tiny_sets_say_that_they_are_insecure() -> None:
    tiny = Params.insecure_tiny()
    assert (tiny.n, tiny.N, tiny.masks_per_epoch, tiny.security_bits) == (64, 256, 4, 0)
    assert Params.insecure_tiny(masks_per_epoch=2).masks_per_epoch == 2
    with pytest.raises(InsecureParameters):
        Params.from_spec(tiny.spec)


def test_sets_are_frozen_and_compare_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.spec = Spec(inner_sigma=3.2)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.spec.inner_sigma = 3.2  # type: ignore[misc]
    assert Params.default() == DEFAULT
    assert hash(Params.default()) == hash(DEFAULT)
    assert Params.insecure_tiny() != DEFAULT
    assert Params.insecure(Spec()) != DEFAULT


def test_a_spec_survives_json() -> None:
    spec = Spec(inner_degree=256, outer_prime_bits=(26, 27), headroom=0.9)
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_with_an_unknown_or_missing_field_is_refused() -> None:
    fields = Spec().to_dict()
    with pytest.raises(ParameterError, match="parameter fields"):
        Spec.from_dict(fields | {"extra": 1})
    del fields["headroom"]
    with pytest.raises(ParameterError, match="parameter fields"):
        Spec.from_dict(fields)


def test_the_description_names_the_sizes_and_the_security() -> None:
    rows = dict(DEFAULT.describe())
    assert "130.9 bits" in rows["security"]
    assert "104 bits" in rows["security"]
    assert "27,648 bytes a mask" in rows["upload ahead"]
    assert "946,176 bytes an epoch" in rows["upload ahead"]
    assert "not estimated" in dict(Params.insecure_tiny().describe())["security"]
