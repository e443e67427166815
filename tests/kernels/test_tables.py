"""The transform's constants: roots, and the order of its points."""

from __future__ import annotations

import numpy as np
import pytest

from veil.kernels.ring import ring_of
from veil.kernels.tables import NttTable, bit_reversal, ntt_table, shoup
from veil.params import Params

RINGS = [ring_of(Params.insecure_tiny()), ring_of(Params.default())]
TABLES = [table for ring in RINGS for table in (*ring.outer, *ring.inner, ring.mu)]


@pytest.fixture(params=TABLES, ids=lambda table: f"{table.degree}-{table.prime}")
def table(request: pytest.FixtureRequest) -> NttTable:
    return request.param


def test_the_root_has_exact_order_twice_the_degree(table: NttTable) -> None:
    assert pow(table.root, table.degree, table.prime) == table.prime - 1
    assert pow(table.root, 2 * table.degree, table.prime) == 1


def test_points_are_the_odd_powers_in_the_documented_order(table: NttTable) -> None:
    assert sorted(table.exponents.tolist()) == list(range(1, 2 * table.degree, 2))
    reversed_bits = bit_reversal(table.degree.bit_length() - 1)
    np.testing.assert_array_equal(table.exponents, 2 * reversed_bits + 1)


def test_twiddles_are_powers_of_the_root_in_reversed_order(table: NttTable) -> None:
    reversed_bits = bit_reversal(table.degree.bit_length() - 1)
    for place in (0, 1, 2, table.degree // 2, table.degree - 1):
        assert table.forward[place] == pow(table.root, int(reversed_bits[place]), table.prime)
    products = table.forward.astype(np.uint64) * table.inverse % np.uint64(table.prime)
    assert (products == 1).all()


def test_the_degree_has_its_inverse(table: NttTable) -> None:
    assert table.degree * table.degree_inverse % table.prime == 1


def test_bit_reversal() -> None:
    assert bit_reversal(0).tolist() == [0]
    assert bit_reversal(3).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_shoup_companions_at_the_extremes() -> None:
    prime = Params.default().outer_primes[0]
    values = np.array([0, 1, prime - 1], dtype=np.uint32)
    assert shoup(values, prime).tolist() == [(int(v) << 32) // prime for v in values]


@pytest.mark.parametrize(("prime", "degree"), [(257, 32 * 8), (12289, 2048 * 4), (97, 64), (97, 12), (97, 1)])
def test_a_degree_or_prime_without_a_transform_is_refused(prime: int, degree: int) -> None:
    with pytest.raises(ValueError, match=f"no transform of degree {degree} modulo {prime}"):
        ntt_table(prime, degree)
