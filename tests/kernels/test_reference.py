"""The NumPy reference against definitions written out again with Python's integers: sums, schoolbook products, rounding."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.kernels import reference
from veil.kernels.gaussian import GaussianTable
from veil.kernels.interface import Rows, Scaling
from veil.kernels.ring import ring_of
from veil.kernels.tables import NttTable
from veil.params import Params

TINY = ring_of(Params.insecure_tiny())
DEFAULT = ring_of(Params.default())
Schoolbook = Callable[[np.ndarray, np.ndarray], np.ndarray]
few = settings(derandomize=True, deadline=None, max_examples=25)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def ids(table: NttTable) -> str:
    return f"{table.degree}-{table.prime}"


ALL = [*TINY.outer, *TINY.inner, TINY.mu, *DEFAULT.outer, *DEFAULT.inner, DEFAULT.mu]


@pytest.mark.parametrize("table", ALL, ids=ids)
def test_ntt_is_evaluation_at_the_points(table: NttTable, rng: np.random.Generator) -> None:
    values = rng.integers(0, table.prime, table.degree, dtype=np.uint32)
    values[0], values[1], values[-1] = table.prime - 1, 0, table.prime - 1
    points = reference.ntt(values, table)
    for t in (0, 1, table.degree // 2 + 3, table.degree - 1):
        x, total = pow(table.root, int(table.exponents[t]), table.prime), 0
        for coefficient in reversed(values.tolist()):
            total = (total * x + coefficient) % table.prime
        assert points[t] == total


@pytest.mark.parametrize("table", ALL, ids=ids)
def test_intt_undoes_ntt(table: NttTable, rng: np.random.Generator) -> None:
    values = rng.integers(0, table.prime, (3, table.degree), dtype=np.uint32)
    np.testing.assert_array_equal(reference.intt(reference.ntt(values, table), table), values)


@pytest.mark.parametrize("table", [TINY.outer[0], TINY.mu, *TINY.inner, DEFAULT.outer[1]], ids=ids)
def test_a_product_of_points_is_the_negacyclic_product(
    table: NttTable, rng: np.random.Generator, schoolbook: Schoolbook
) -> None:
    left, right = rng.integers(0, table.prime, table.degree), rng.integers(-1, 2, table.degree)
    product = reference.ntt(left.astype(np.uint32), table).astype(np.uint64) * reference.residues(right, table)
    expected = schoolbook(left.astype(object), right.astype(object)) % table.prime
    found = reference.intt((product % np.uint64(table.prime)).astype(np.uint32), table)
    np.testing.assert_array_equal(found, expected.astype(np.uint32))


@pytest.mark.parametrize("bits", [12, 20, 21, 32])
def test_the_modulus_switch_rounds(bits: int, rng: np.random.Generator) -> None:
    p1, p2 = DEFAULT.primes
    whole = p1 * p2
    values = [int(v) for v in rng.integers(0, whole, 500)] + [0, 1, whole - 1, whole // 2]
    residues = np.array([[v % p for v in values] for p in DEFAULT.primes], dtype=np.uint32)
    found = reference.switched(residues, bits, DEFAULT).astype(np.int64)
    for value, word in zip(values, found.tolist(), strict=True):
        exact = Fraction(value << bits, whole)
        distance = (Fraction(word) - exact) % (1 << bits)
        assert min(distance, (1 << bits) - distance) <= Fraction(1, 2) + Fraction(1 << bits, 1 << 29)


def test_lifting_gives_the_integer_nearest_zero(rng: np.random.Generator) -> None:
    p1, p2 = DEFAULT.primes
    most = p1 * p2 // 2 - p1
    values = [int(v) for v in rng.integers(-most, most, 500)] + [0, 1, -1, most, -most]
    residues = np.array([[v % p for v in values] for p in DEFAULT.primes], dtype=np.uint32)
    assert reference.lifted(residues, DEFAULT).tolist() == [v % (1 << 32) for v in values]


def test_the_hint_is_what_the_server_has_to_take_off(rng: np.random.Generator, schoolbook: Schoolbook) -> None:
    """Sections 4.1 and 4.2: products in the subring give W times the coefficients of A·s, for every row of the batch."""
    ring, width, slots = TINY, 21, 5
    elements = -(-width // ring.r)
    a = rng.integers(0, 1 << 32, (elements, ring.k, ring.m), dtype=np.uint32)
    weights = rng.integers(-127, 128, (slots, width), dtype=np.int8)
    secret = rng.integers(-1, 2, (ring.k, ring.m)).astype(np.int8)
    sums = [sum(schoolbook(own[i].astype(object), secret[i].astype(object)) for i in range(ring.k)) for own in a]
    rows = np.concatenate([total.reshape(ring.T, ring.r) for total in sums], axis=1)[:, :width]
    expected = rows @ weights.T.astype(object) % (1 << 32)
    hint = reference.matmul(weights, reference.inner_matrix(a, ring)[:, :width]).T.reshape(slots, ring.terms, ring.T)
    parts = reference.subring_parts(secret, ring)
    for slot in range(slots):
        total = sum(schoolbook(hint[slot, v].astype(object), parts[v].astype(object)) for v in range(ring.terms))
        assert (total % (1 << 32)).tolist() == expected[:, slot].tolist()


def test_the_hint_is_rounded_and_centred() -> None:
    unit = 1 << (32 - TINY.hint_bits)
    words = np.array([0, unit // 2 - 1, unit // 2, (1 << 31) - unit, 1 << 31, (1 << 32) - unit], dtype=np.uint32)
    top = 1 << (TINY.hint_bits - 1)
    assert reference.rounded_hint(words, TINY).tolist() == [0, 0, 1, top - 1, -top, -1]


def test_a_batch_decrypts_to_its_secret(rng: np.random.Generator) -> None:
    """``b_v + a_v·z - e_v`` is Δ times the subring part of the secret at every w-th coefficient, and nothing elsewhere."""
    ring, kernels = TINY, reference.ReferenceKernels()
    a = np.stack([rng.integers(0, p, (ring.terms, ring.N), dtype=np.uint32) for p in ring.primes], axis=1)
    z, secret = rng.integers(-1, 2, ring.N).astype(np.int8), rng.integers(-1, 2, (ring.k, ring.m)).astype(np.int8)
    errors = rng.integers(-9, 10, (ring.terms, ring.N)).astype(np.int8)
    b = kernels.decode_batches(kernels.encrypt_batch(a, z, secret, errors, ring)[None], ring)[0]
    for i, table in enumerate(ring.outer):
        p = table.prime
        opened = (b[:, i].astype(np.uint64) + a[:, i].astype(np.uint64) * reference.residues(z, table)) % np.uint64(p)
        plain = reference.intt(opened.astype(np.uint32), table).astype(np.int64) - errors
        expected = np.zeros((ring.terms, ring.N), dtype=np.int64)
        expected[:, :: ring.w] = reference.subring_parts(secret, ring).astype(np.int64) * ring.scale
        assert ((plain - expected) % p == 0).all()


def test_shares_are_the_product_with_z(rng: np.random.Generator, schoolbook: Schoolbook) -> None:
    ring, kernels = TINY, reference.ReferenceKernels()
    table = rng.integers(0, 1 << ring.public_bits, (ring.T, 2 * ring.w), dtype=np.uint32)
    z = rng.integers(-1, 2, ring.N).astype(np.int8)
    found = kernels.shares(kernels.load_public(table, ring), z, 2 * ring.w, ring)
    for block in range(2):
        part = table[:, block * ring.w : (block + 1) * ring.w]
        product = schoolbook(part.reshape(-1).astype(object), z.astype(object)) % (1 << ring.public_bits)
        expected = product.reshape(ring.T, ring.w) << (32 - ring.public_bits)
        assert (found[:, block * ring.w : (block + 1) * ring.w].astype(object) == expected).all()


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


def test_the_gaussian_table_inverts_the_distribution() -> None:
    table = GaussianTable(3.2)
    words = np.arange(1 << 16, dtype=np.uint16)
    resolved = table.resolve(words, np.zeros(1 << 16, dtype=np.uint64))
    clear = table.values != GaussianTable.UNCLEAR
    np.testing.assert_array_equal(table.values[clear], resolved[clear])
    assert 20 <= (~clear).sum() <= 60
    assert (np.diff(resolved.astype(int)) >= 0).all()
    assert resolved[0] == -table.largest
    assert table.resolve(np.array([65535], np.uint16), np.array([(1 << 64) - 1], np.uint64))[0] == table.largest


def test_rows_fill_the_target_and_those_not_finite_show() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0], [np.inf, 1.0], [np.nan, 0.0]], dtype=np.float32)
    tau, shown = reference.row_scales(x, 10.0, 0.0)
    assert tau[:2].tolist() == [2.0, 0.0]
    assert np.isnan(tau[2:]).all()
    assert shown is tau
    tau, shown = reference.row_scales(x, 10.0, 2.0)
    assert (tau[:2].tolist(), shown[:2].tolist()) == ([2.0, 5.0], [5.0, 5.0]), "longer rows are clipped to the fixed norm"
    assert np.isnan(shown[2:]).all()


def test_a_row_goes_there_and_back() -> None:
    """With whole words nothing is rounded: the result is the product of the scaled integers, exactly."""
    kernels, rng = reference.ReferenceKernels(), np.random.default_rng(5)
    weights = rng.integers(-127, 128, (6, 9), dtype=np.int8)
    x = rng.standard_normal((2, 9)).astype(np.float32)
    pads, h = (rng.integers(0, 1 << 32, (4, 20), dtype=np.uint32) for _ in range(2))
    ones = np.ones(6, dtype=np.float32)
    divisors = np.linspace(0.5, 2.0, 9, dtype=np.float32)
    scaling = Scaling(divisors, 2 * ones, 0.5 * ones, 2.0**20, 0.0)
    data, tau = kernels.encrypt(x, scaling, [Rows(pads, 1, 1), Rows(pads, 3, 1)], 4, 32)
    reply = kernels.answer(data, weights, [Rows(h, 0, 2)], 7, (32, 32))
    off = reference.matmul(weights, pads[[1, 3], 4:13]) - h[:2, 7:13]
    y = kernels.decrypt(reply, scaling, [Rows(off, 0, 2)], 0, 32, tau)
    words = np.rint((x / divisors).astype(np.float64) * tau[:, None]).astype(np.int64)
    expected = (words @ weights.T.astype(np.int64)) / tau[:, None] * 2 + 0.5
    np.testing.assert_allclose(y, expected, rtol=1e-6)
