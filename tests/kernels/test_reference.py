"""The NumPy reference against definitions written out again with Python's integers: sums, schoolbook products, rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.kernels import reference
from veil.kernels.ring import Ring, ring_of
from veil.kernels.tables import NttTable
from veil.params import Params, Spec
from veil.random import GaussianTable

TINY = ring_of(Params.insecure_tiny())
SMALL = ring_of(Params.insecure(Spec(inner_degree=64, outer_degree=64, masks_per_epoch=1)))
DEFAULT = ring_of(Params.default())
Schoolbook = Callable[[np.ndarray, np.ndarray], np.ndarray]
few = settings(derandomize=True, deadline=None, max_examples=25)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def ids(table: NttTable) -> str:
    return f"{table.degree}-{table.prime}"


@pytest.mark.parametrize("table", [*TINY.tables, *TINY.inner_tables, *DEFAULT.tables, *DEFAULT.inner_tables], ids=ids)
def test_ntt_is_evaluation_at_the_points(table: NttTable, rng: np.random.Generator) -> None:
    values = rng.integers(0, table.prime, table.degree, dtype=np.uint32)
    values[0], values[1], values[-1] = table.prime - 1, 0, table.prime - 1
    points = reference.ntt(values, table)
    for t in (0, 1, table.side, table.degree // 2 + 3, table.degree - 1):
        x, total = pow(table.root, int(table.exponents[t]), table.prime), 0
        for coefficient in reversed(values.tolist()):
            total = (total * x + coefficient) % table.prime
        assert points[t] == total


@pytest.mark.parametrize("table", [TINY.tables[0], TINY.tables[2], *TINY.inner_tables, *DEFAULT.tables], ids=ids)
def test_a_product_of_points_is_the_negacyclic_product(
    table: NttTable, rng: np.random.Generator, schoolbook: Schoolbook
) -> None:
    left, right = (rng.integers(0, table.prime, table.degree, dtype=np.uint32) for _ in range(2))
    right[5:] = 0
    right[-1] = table.prime - 1
    product = reference.ntt(left, table).astype(np.uint64) * reference.ntt(right, table) % np.uint64(table.prime)
    expected = np.zeros(table.degree, dtype=object)
    for place in np.flatnonzero(right):
        shifted = np.concatenate([-left[table.degree - place :].astype(object), left[: table.degree - place].astype(object)])
        expected = (expected + int(right[place]) * shifted) % table.prime
    np.testing.assert_array_equal(reference.intt(product.astype(np.uint32), table), expected.astype(np.uint32))


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 5]), st.sampled_from([0, 1, 2]))
@few
def test_intt_undoes_ntt(seed: int, rows: int, which: int) -> None:
    table = TINY.tables[which]
    values = np.random.default_rng(seed).integers(0, table.prime, (rows, table.degree), dtype=np.uint32)
    np.testing.assert_array_equal(reference.intt(reference.ntt(values, table), table), values)
    np.testing.assert_array_equal(reference.ntt(reference.intt(values, table), table), values)


def substitute(values: np.ndarray, power: int) -> np.ndarray:
    """``f(X^power)`` modulo X^degree + 1, coefficient by coefficient."""
    degree = len(values)
    out = np.zeros(degree, dtype=object)
    for j, value in enumerate(values.tolist()):
        place = j * power % (2 * degree)
        out[place % degree] += value if place < degree else -value
    return out


@pytest.mark.parametrize("table", [TINY.tables[0], DEFAULT.tables[1]], ids=ids)
@pytest.mark.parametrize("power", [3, 7, -1, "N+1"])
def test_an_automorphism_permutes_the_points(table: NttTable, power: int | str, rng: np.random.Generator) -> None:
    exponent = table.degree + 1 if power == "N+1" else int(power)
    values = rng.integers(0, table.prime, table.degree, dtype=np.uint32)
    moved = (substitute(values, exponent) % table.prime).astype(np.uint32)
    np.testing.assert_array_equal(reference.ntt(moved, table), reference.ntt(values, table)[table.automorphism(exponent)])


def lifted(residues: np.ndarray, moduli: tuple[int, ...]) -> np.ndarray:
    """Residues [primes, N] → integers [N] below the product, by the remainder theorem."""
    whole = math.prod(moduli)
    total = np.zeros(residues.shape[-1], dtype=object)
    for row, p in zip(residues, moduli, strict=True):
        total += row.astype(object) * (whole // p * pow(whole // p, -1, p))
    return total % whole


def residues(rng: np.random.Generator, ring: Ring, primes: int) -> np.ndarray:
    parts = [rng.integers(0, p, ring.N, dtype=np.uint32) for p in ring.moduli[:primes]]
    for part, p in zip(parts, ring.moduli, strict=False):
        part[:3] = 0, 1, p - 1
    return np.stack(parts)


def from_points(points: np.ndarray, ring: Ring) -> np.ndarray:
    return np.stack([reference.intt(row, ring.tables[i]) for i, row in enumerate(points)])


def to_points(values: np.ndarray, ring: Ring) -> np.ndarray:
    return np.stack([reference.ntt(row, ring.tables[i]) for i, row in enumerate(values)])


def rounded_quotient(value: int, divisor: int) -> int:
    return math.floor(Fraction(value, divisor) + Fraction(1, 2))


@pytest.mark.parametrize("ring", [TINY, DEFAULT], ids=["tiny", "default"])
def test_key_switch_digits_are_the_centred_residues_modulo_every_prime(ring: Ring, rng: np.random.Generator) -> None:
    values = residues(rng, ring, 2)
    digits = reference.switch_digits(to_points(values, ring), ring)
    for j in range(2):
        p = ring.moduli[j]
        centred = np.where(values[j] > p // 2, values[j].astype(object) - p, values[j].astype(object))
        for i, q in enumerate(ring.moduli):
            np.testing.assert_array_equal(reference.intt(digits[j, i], ring.tables[i]), (centred % q).astype(np.uint32))


@pytest.mark.parametrize("ring", [TINY, DEFAULT], ids=["tiny", "default"])
def test_division_by_the_special_prime_rounds(ring: Ring, rng: np.random.Generator) -> None:
    values = residues(rng, ring, 3)
    quotient = from_points(reference.divide_by_special(to_points(values, ring), ring), ring)
    whole = lifted(values, ring.moduli)
    expected = np.array([rounded_quotient(x, ring.moduli[2]) for x in whole], dtype=object)
    for i, p in enumerate(ring.moduli[:2]):
        np.testing.assert_array_equal(quotient[i], (expected % p).astype(np.uint32))


@pytest.mark.parametrize("ring", [TINY, DEFAULT], ids=["tiny", "default"])
@pytest.mark.parametrize("bits", [8, 18, 20, 24, 32])
def test_scaling_to_bits_rounds(ring: Ring, bits: int, rng: np.random.Generator) -> None:
    """Exact to 24 bits; at 32 the 64-bit fractions of three residues may be off by one unit, never more."""
    values = residues(rng, ring, 3)
    scaled = reference.scale_to_bits(values, bits, ring)
    whole, modulus = lifted(values, ring.moduli), math.prod(ring.moduli)
    expected = np.array([rounded_quotient(int(x) << bits, modulus) % (1 << bits) for x in whole], dtype=np.int64)
    difference = (scaled.astype(np.int64) - expected + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    if bits <= 24:
        assert not difference.any()
    else:
        assert set(difference.tolist()) <= {-1, 0}


def test_product_is_a_sum_over_leaves(rng: np.random.Generator) -> None:
    rows, masks = 3, 2
    hint = np.stack([rng.integers(0, p, (SMALL.N, rows, SMALL.leaves), dtype=np.uint32) for p in SMALL.moduli[:2]])
    leaves = np.stack([rng.integers(0, p, (SMALL.N, masks, SMALL.leaves), dtype=np.uint32) for p in SMALL.moduli[:2]])
    out = reference.product(hint, leaves, SMALL)
    for i, p in enumerate(SMALL.moduli[:2]):
        exact = np.einsum("nri,nti->trn", hint[i].astype(object), leaves[i].astype(object)) % p
        np.testing.assert_array_equal(out[:, :, i], exact.astype(np.uint32))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 63), (2, 64), (4, 131)])
def test_inner_hint_is_the_weights_times_the_negacyclic_matrices(rows: int, width: int, rng: np.random.Generator) -> None:
    n, bits = TINY.n, 18
    weights = rng.integers(-128, 128, (rows, width), dtype=np.int8)
    weights[0] = 127
    a = rng.integers(0, 2**32, (-(-width // n), n), dtype=np.uint32)
    a[0, :2] = 0, 2**32 - 1
    matrix = np.zeros((len(a) * n, n), dtype=object)
    for c, polynomial in enumerate(a):
        for i in range(n):
            column = np.roll(polynomial.astype(object), i)
            column[:i] *= -1
            matrix[c * n : (c + 1) * n, i] = column
    exact = weights.astype(object) @ matrix[:width] % 2**32
    expected = np.array([[rounded_quotient(x, 1 << (32 - bits)) for x in row] for row in exact], dtype=np.int64)
    expected = (expected + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    np.testing.assert_array_equal(reference.inner_hint(weights, a, bits, TINY), expected)


@pytest.mark.parametrize("slots", [1, 5, SMALL.N])
def test_outer_hint_folds_the_columns_of_a_block(slots: int, rng: np.random.Generator) -> None:
    """``Ĥ_{r,i} = Σ_j ρ_r⁻¹(H'_{iG+j}(X))·Y^(-j)``, in coefficients."""
    ring = SMALL
    block = rng.integers(-(2**17), 2**17, (slots, ring.n), dtype=np.int32)
    block[0, :2] = -(2**17), 2**17 - 1
    hint = reference.outer_hint(block, ring)
    assert hint.shape == (2, ring.N, ring.fold, ring.leaves)
    for r in range(ring.fold):
        back = pow(2 * r + 1, -1, 2 * ring.N)
        for i in (0, ring.leaves - 1):
            total = np.zeros(ring.N, dtype=object)
            for j in range(ring.fold):
                column = np.zeros(ring.N, dtype=object)
                column[:slots] = block[:, i * ring.fold + j].astype(object)
                down = np.zeros(2 * ring.N, dtype=object)
                down[: ring.N] = substitute(column, back)
                down = np.roll(down, -j * ring.N // ring.fold)
                total += down[: ring.N] - down[ring.N :]
            for prime, p in enumerate(ring.moduli[:2]):
                points = np.ascontiguousarray(hint[prime, :, r, i])
                np.testing.assert_array_equal(reference.intt(points, ring.tables[prime]), (total % p).astype(np.uint32))


@pytest.mark.parametrize("degree", ["inner", "outer"])
def test_secret_products_are_exact(degree: str, rng: np.random.Generator, schoolbook: Schoolbook) -> None:
    ring = TINY
    tables, size = (ring.inner_tables, ring.n) if degree == "inner" else (ring.tables, ring.N)
    secret = rng.integers(-1, 2, size, dtype=np.int64)
    public = rng.integers(-(2**31), 2**31, (3, size), dtype=np.int64).astype(np.int32)
    public[0] = -(2**31)
    public[1] = 2**31 - 1
    points = reference.centred_points(public, tables, ring)
    key = reference.centred_points(secret[None].astype(np.int32), tables, ring)[0]
    expected = np.stack([schoolbook(row.astype(np.int64), secret) for row in public]) % 2**32
    np.testing.assert_array_equal(reference.secret_products(points, key, tables, ring), expected.astype(np.uint32))
    everywhere = np.ones(size, dtype=np.int64)
    key = reference.centred_points(everywhere[None].astype(np.int32), tables, ring)[0]
    expected = np.stack([schoolbook(row.astype(np.int64), everywhere) for row in public]) % 2**32
    np.testing.assert_array_equal(reference.secret_products(points, key, tables, ring), expected.astype(np.uint32))


@given(
    st.lists(st.lists(st.integers(-128, 127), min_size=3, max_size=3), min_size=0, max_size=4),
    st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3), min_size=0, max_size=3),
)
@few
def test_matmul_wraps_modulo_two_to_the_32(weights: list[list[int]], rows: list[list[int]]) -> None:
    left = np.array(weights, dtype=np.int8).reshape(-1, 3)
    right = np.array(rows, dtype=np.uint32).reshape(-1, 3)
    expected = [[sum(w * x for w, x in zip(a, b, strict=True)) % 2**32 for a in weights] for b in rows]
    out = reference.matmul(left, right)
    assert out.shape == (len(rows), len(weights))
    assert out.tolist() == expected


@given(st.integers(1, 32), st.data())
@few
def test_pack_is_little_endian_bits(bits: int, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=0, max_size=9))
    packed = reference.pack(np.array([words], dtype=np.uint32), bits)
    whole = sum(word << (bits * place) for place, word in enumerate(words))
    assert packed.tobytes() == whole.to_bytes(-(-len(words) * bits // 8), "little")
    assert reference.unpack(packed, len(words), bits).tolist() == [words]


def test_answer_is_the_product_less_the_share_rounded_to_its_top_bits(rng: np.random.Generator) -> None:
    weights = rng.integers(-128, 128, (5, 7), dtype=np.int8)
    rows = rng.integers(0, 2**24, (2, 7), dtype=np.uint32)
    h = rng.integers(0, 2**32, (2, 5), dtype=np.uint32)
    exact = (rows.astype(object) * 256) @ weights.T.astype(object) - h.astype(object)
    expected = [[rounded_quotient(x % 2**32, 1 << 14) % 2**18 for x in row] for row in exact]
    data = reference.answer(reference.pack(rows, 24), weights, h, 24, 18)
    assert reference.unpack(data, 5, 18).tolist() == expected


def test_gaussian_inverts_the_cumulative_table() -> None:
    table = GaussianTable(3.2)
    edges = [0, *table.cumulative[:-1].tolist(), 2**63 - 1]
    for k, first in enumerate(edges[:-1]):
        if first == edges[k + 1]:
            continue
        words = np.array([first << 1, (first << 1) | 1], dtype=np.uint64)
        assert reference.gaussian(words, table.cumulative, table.guide).tolist() == [k, -k]
        last = np.array([(int(table.cumulative[k]) - 1) << 1], dtype=np.uint64)
        assert reference.gaussian(last, table.cumulative, table.guide).tolist() == [k]


def test_scales_fill_the_target_and_mark_rows_that_are_not_finite() -> None:
    x = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [-np.inf, 1], [1e38, 1e38], [1e-45, 0]], dtype=np.float32)
    tau = reference.scales(x, 10.0)
    assert tau[0] == 2.0
    assert tau[1] == 0.0
    assert np.isnan(tau[2:5]).all()
    assert np.linalg.norm(x[5].astype(np.float64) * tau[5]) == pytest.approx(10.0)
    assert float(x[6, 0]) * tau[6] == pytest.approx(10.0)


def test_encrypt_adds_the_mask_and_keeps_the_top_bits(rng: np.random.Generator) -> None:
    x = np.array([[1.5, -2.25, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    tau = np.array([1000.0, 0.0])
    masks = rng.integers(0, 2**32, (2, 3), dtype=np.uint32)
    masks[1] = 2**32 - 1, 127, 128
    words = reference.unpack(reference.encrypt(x, tau, masks, 24), 3, 24)
    message = [[1500, -2250, 0], [0, 0, 0]]
    expected = [
        [rounded_quotient((m + int(a)) % 2**32, 256) % 2**24 for m, a in zip(row, mask, strict=True)]
        for row, mask in zip(message, masks, strict=True)
    ]
    assert words.tolist() == expected
    assert words[1].tolist() == [0, 0, 1]


def test_encrypt_without_rounding() -> None:
    masks = np.array([[2**32 - 1, 5]], dtype=np.uint32)
    data = reference.encrypt(np.array([[1.0, -7.0]], dtype=np.float32), np.array([1.0]), masks, 32)
    assert reference.unpack(data, 2, 32).tolist() == [[0, 2**32 - 2]]


def test_decrypt_subtracts_and_centres() -> None:
    data = reference.pack(np.array([[0, 2**18 - 1, 2**17]], dtype=np.uint32), 18)
    mu = np.array([[1, 0, 0]], dtype=np.uint32)
    assert reference.decrypt(data, mu, 18).tolist() == [[-1, -(2**14), -(2**31)]]


def test_dequantize_gives_the_bias_where_tau_is_zero() -> None:
    values = np.array([[100, -200], [12345, -(2**31)]], dtype=np.int32)
    scale, bias = np.array([0.5, 2.0], dtype=np.float32), np.array([1.0, -3.0], dtype=np.float32)
    out = reference.dequantize(values, np.array([10.0, 0.0]), scale, bias)
    assert out.dtype == np.float32
    assert out.tolist() == [[6.0, -43.0], [1.0, -3.0]]
