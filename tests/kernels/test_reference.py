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
from veil.kernels.interface import Rows, Scaling
from veil.kernels.reference_kernels import ReferenceKernels
from veil.kernels.ring import Ring, ring_of
from veil.kernels.tables import NttTable
from veil.params import Params

TINY = ring_of(Params.insecure_tiny())
DEFAULT = ring_of(Params.default())
RINGS = pytest.mark.parametrize("ring", [TINY, DEFAULT], ids=["tiny", "default"])
KERNELS = ReferenceKernels()
Schoolbook = Callable[[np.ndarray, np.ndarray], np.ndarray]
few = settings(derandomize=True, deadline=None, max_examples=25)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def ids(table: NttTable) -> str:
    return f"{table.degree}-{table.prime}"


@pytest.mark.parametrize("table", [*TINY.outer, *TINY.inner, TINY.mu, *DEFAULT.outer, *DEFAULT.inner, DEFAULT.mu], ids=ids)
def test_ntt_is_evaluation_at_the_points(table: NttTable, rng: np.random.Generator) -> None:
    values = rng.integers(0, table.prime, table.degree, dtype=np.uint32)
    values[0], values[1], values[-1] = table.prime - 1, 0, table.prime - 1
    points = reference.ntt(values, table)
    for t in (0, 1, table.degree // 2 + 3, table.degree - 1):
        x, total = pow(table.root, int(table.exponents[t]), table.prime), 0
        for coefficient in reversed(values.tolist()):
            total = (total * x + coefficient) % table.prime
        assert points[t] == total


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 5]), st.sampled_from([0, 1]))
@few
def test_intt_undoes_ntt(seed: int, rows: int, which: int) -> None:
    table = TINY.outer[which]
    values = np.random.default_rng(seed).integers(0, table.prime, (rows, table.degree), dtype=np.uint32)
    np.testing.assert_array_equal(reference.intt(reference.ntt(values, table), table), values)
    np.testing.assert_array_equal(reference.ntt(reference.intt(values, table), table), values)


@pytest.mark.parametrize("table", [TINY.outer[0], TINY.mu, *TINY.inner, DEFAULT.outer[1]], ids=ids)
def test_a_product_of_points_is_the_negacyclic_product(
    table: NttTable, rng: np.random.Generator, schoolbook: Schoolbook
) -> None:
    left, right = rng.integers(0, table.prime, table.degree), rng.integers(-1, 2, table.degree)
    product = reference.ntt(left.astype(np.uint32), table).astype(np.uint64) * reference.residues(right, table)
    expected = schoolbook(left.astype(object), right.astype(object)) % table.prime
    found = reference.intt((product % np.uint64(table.prime)).astype(np.uint32), table)
    np.testing.assert_array_equal(found, expected.astype(np.uint32))


def residues(rng: np.random.Generator, ring: Ring, count: int) -> np.ndarray:
    parts = [rng.integers(0, p, count, dtype=np.uint32) for p in ring.primes]
    for part, p in zip(parts, ring.primes, strict=True):
        part[:3] = 0, 1, p - 1
    return np.stack(parts)


def whole(values: np.ndarray, ring: Ring) -> np.ndarray:
    """Residues [2, count] → integers below Q, by the remainder theorem."""
    p1, p2 = ring.primes
    first, second = values[0].astype(object), values[1].astype(object)
    return (first * p2 * pow(p2, -1, p1) + second * p1 * pow(p1, -1, p2)) % (p1 * p2)


def rounded_quotient(value: int, divisor: int) -> int:
    return math.floor(Fraction(value, divisor) + Fraction(1, 2))


@RINGS
@pytest.mark.parametrize("bits", [8, 18, 21, 24, 32])
def test_switching_rounds(ring: Ring, bits: int, rng: np.random.Generator) -> None:
    """As the exact quotient does, but for what the fractions lose: less than 2^24 units of 2^-54, always downwards."""
    values = residues(rng, ring, 5000)
    modulus = math.prod(ring.primes)
    expected = np.array([rounded_quotient(int(x) << bits, modulus) % (1 << bits) for x in whole(values, ring)])
    switched = reference.switched(values, bits, ring).astype(np.int64)
    difference = (switched - expected + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    assert set(difference.tolist()) <= set(range(-4 if bits == 32 else -1, 1))
    assert bits == 32 or (difference != 0).mean() < 2.0 ** (bits - 28)


@RINGS
def test_lifting_gives_the_integer_nearest_zero(ring: Ring, rng: np.random.Generator) -> None:
    """Of sizes up to what products of the inner ring have."""
    largest = ring.n << 31
    values = [0, 1, -1, largest, -largest, *rng.integers(-largest, largest + 1, 3000).tolist()]
    both = np.array([[value % p for value in values] for p in ring.primes], dtype=np.uint32)
    expected = [value % 2**32 for value in values]
    assert reference.lifted(both, ring).tolist() == expected


@RINGS
@pytest.mark.parametrize("bits", [12, 20, 24])
def test_the_hint_is_rounded_and_centred(ring: Ring, bits: int, rng: np.random.Generator) -> None:
    own = ring_of(Params.insecure_tiny(hint_bits=bits))
    words = rng.integers(0, 2**32, 2000, dtype=np.uint32)
    words[:5] = 0, 2**32 - 1, 2**31, 2**31 - 1, 1 << (31 - bits)
    expected = [rounded_quotient(int(word), 1 << (32 - bits)) for word in words]
    half = 1 << (bits - 1)
    assert reference.rounded_hint(words, own).tolist() == [(value + half) % (1 << bits) - half for value in expected]


def test_pads_are_exact(rng: np.random.Generator, schoolbook: Schoolbook) -> None:
    """Words and secrets at their extremes: ``Σ_i a_i·s_i`` row by row, then the errors."""
    ring = TINY
    a = rng.integers(0, 2**32, (5, ring.k, ring.m), dtype=np.uint32)
    a[0], a[1], a[2] = 2**31, 2**31 - 1, 2**32 - 1
    errors = rng.integers(-128, 128, (ring.T, 5 * ring.r)).astype(np.int8)
    for secret in (rng.integers(-1, 2, (ring.k, ring.m)), np.ones((ring.k, ring.m)), -np.ones((ring.k, ring.m))):
        s = secret.astype(np.int8)
        (found,) = KERNELS.pads(KERNELS.load_inner(a, ring), s[None], [errors], ring)
        sums = [sum(schoolbook(own[i].astype(np.int64), s[i].astype(np.int64)) for i in range(ring.k)) for own in a]
        expected = np.concatenate([np.asarray(own).reshape(ring.T, ring.r) for own in sums], axis=1) + errors
        np.testing.assert_array_equal(found, (expected % 2**32).astype(np.uint32))


def test_the_parts_of_a_secret_are_its_every_rth_coefficients(rng: np.random.Generator) -> None:
    secret = rng.integers(-1, 2, (TINY.k, TINY.m)).astype(np.int8)
    parts = reference.subring_parts(secret, TINY)
    assert parts.shape == (TINY.terms, TINY.T)
    for i in range(TINY.k):
        for v in range(TINY.r):
            assert parts[i * TINY.r + v].tolist() == secret[i, v :: TINY.r].tolist()


def test_the_hint_is_what_the_server_has_to_take_off(rng: np.random.Generator, schoolbook: Schoolbook) -> None:
    """Sections 4.1 and 4.2: products in the subring give W times the coefficients of A·s, for every row of the batch."""
    ring, width, slots = TINY, 21, 5
    elements = -(-width // ring.r)
    a = rng.integers(0, 1 << 32, (elements, ring.k, ring.m), dtype=np.uint32)
    weights = rng.integers(-127, 128, (slots, width), dtype=np.int8)
    secret = rng.integers(-1, 2, (ring.k, ring.m)).astype(np.int8)
    sums = [sum(schoolbook(own[i].astype(object), secret[i].astype(object)) for i in range(ring.k)) for own in a]
    rows = np.concatenate([np.asarray(total).reshape(ring.T, ring.r) for total in sums], axis=1)[:, :width]
    expected = rows @ weights.T.astype(object) % (1 << 32)
    hint = reference.matmul(weights, reference.inner_matrix(a, ring)[:, :width]).T.reshape(slots, ring.terms, ring.T)
    parts = reference.subring_parts(secret, ring)
    for slot in range(slots):
        total = sum(schoolbook(hint[slot, v].astype(object), parts[v].astype(object)) for v in range(ring.terms))
        assert np.asarray(total % (1 << 32)).tolist() == expected[:, slot].tolist()


def test_a_batch_decrypts_to_its_secret(rng: np.random.Generator) -> None:
    """``b_v + a_v·z - e_v`` is Δ times the subring part of the secret at every w-th coefficient, and nothing elsewhere."""
    ring, kernels = TINY, ReferenceKernels()
    a = np.stack([rng.integers(0, p, (ring.terms, ring.N), dtype=np.uint32) for p in ring.primes], axis=1)
    z, secret = rng.integers(-1, 2, ring.N).astype(np.int8), rng.integers(-1, 2, (ring.k, ring.m)).astype(np.int8)
    errors = rng.integers(-9, 10, (ring.terms, ring.N)).astype(np.int8)
    b = kernels.decode_batches(kernels.encrypt_batches(a, z[None], secret[None], errors[None], ring), ring)[0]
    for i, table in enumerate(ring.outer):
        p = table.prime
        opened = (b[:, i].astype(np.uint64) + a[:, i].astype(np.uint64) * reference.residues(z, table)) % np.uint64(p)
        plain = reference.intt(opened.astype(np.uint32), table).astype(np.int64) - errors
        expected = np.zeros((ring.terms, ring.N), dtype=np.int64)
        expected[:, :: ring.w] = reference.subring_parts(secret, ring).astype(np.int64) * ring.scale
        assert ((plain - expected) % p == 0).all()


def test_shares_are_the_product_with_z(rng: np.random.Generator, schoolbook: Schoolbook) -> None:
    ring, kernels = TINY, ReferenceKernels()
    table = rng.integers(0, 1 << ring.public_bits, (ring.T, 2 * ring.w), dtype=np.uint32)
    z = rng.integers(-1, 2, ring.N).astype(np.int8)
    (found,) = kernels.shares(kernels.load_public(table, ring), z[None], 2 * ring.w, ring)
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


def test_answer_is_the_product_less_the_share_rounded_to_its_top_bits(rng: np.random.Generator) -> None:
    """Shares of rows of two batches, from a column on."""
    weights = rng.integers(-128, 128, (5, 7), dtype=np.int8)
    rows = rng.integers(0, 2**24, (3, 7), dtype=np.uint32)
    h = rng.integers(0, 2**32, (2, 4, 9), dtype=np.uint32)
    own = np.stack([h[1, 2], h[1, 3], h[0, 0]])[:, 3:8]
    exact = (rows.astype(object) * 256) @ weights.T.astype(object) - own.astype(object)
    expected = [[rounded_quotient(x % 2**32, 1 << 14) % 2**18 for x in row] for row in exact]
    data = KERNELS.answer(reference.pack(rows, 24), weights, [Rows(h[1], 2, 2), Rows(h[0], 0, 1)], 3, (24, 18))
    assert reference.unpack(data, 5, 18).tolist() == expected


def test_scales_fill_the_target_and_mark_rows_that_are_not_finite() -> None:
    x = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [-np.inf, 1], [1e38, 1e38], [1e-45, 0]], dtype=np.float32)
    tau, shown = reference.row_scales(x, 10.0, 0.0)
    np.testing.assert_array_equal(tau, shown)
    assert tau[0] == 2.0
    assert tau[1] == 0.0
    assert np.isnan(tau[2:5]).all()
    assert np.linalg.norm(x[5].astype(np.float64) * tau[5]) == pytest.approx(10.0)
    assert float(x[6, 0]) * tau[6] == pytest.approx(10.0)


def test_a_fixed_norm_gives_all_rows_one_scale_and_clips_longer_ones() -> None:
    x = np.array([[3, 4], [0, 0], [30, 40], [np.nan, 1]], dtype=np.float32)
    tau, shown = reference.row_scales(x, 10.0, 5.0)
    assert tau[:3].tolist() == [2.0, 2.0, 0.2]
    assert shown[:3].tolist() == [2.0, 2.0, 2.0]
    assert np.isnan(tau[3]) and np.isnan(shown[3])


def test_encrypt_adds_the_pads_and_keeps_the_top_bits() -> None:
    x = np.array([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [np.nan, 1.0, 1.0]], dtype=np.float32)
    pads = np.random.default_rng(1).integers(0, 2**32, (4, 5), dtype=np.uint32)
    pads[1, 2:] = 2**32 - 1, 127, 128
    scaling = Scaling(None, np.ones(1, np.float32), np.zeros(1, np.float32), 5000.0, 0.0)
    data, scales = KERNELS.encrypt(x, scaling, [Rows(pads, 0, 3)], 2, 24)
    words = reference.unpack(data, 3, 24)
    message = [[3000, -4000, 0], [0, 0, 0]]
    expected = [
        [rounded_quotient((m + int(a)) % 2**32, 256) % 2**24 for m, a in zip(row, pad, strict=True)]
        for row, pad in zip(message, pads[:2, 2:], strict=True)
    ]
    assert words[:2].tolist() == expected
    assert words[1].tolist() == [0, 0, 1]
    assert not data[2].any()
    assert scales[:2].tolist() == [1000.0, 0.0] and np.isnan(scales[2])
    assert KERNELS.finite(scales[:2]) and not KERNELS.finite(scales)


def test_encrypt_divides_first_and_does_not_round_at_32_bits() -> None:
    pads = np.array([[2**32 - 1, 5]], dtype=np.uint32)
    scaling = Scaling(np.array([1.0, 2.0], np.float32), np.ones(1, np.float32), np.zeros(1, np.float32), 5.0, 0.0)
    data, scales = KERNELS.encrypt(np.array([[3.0, -8.0]], dtype=np.float32), scaling, [Rows(pads, 0, 1)], 0, 32)
    assert scales.tolist() == [1.0]
    assert reference.unpack(data, 2, 32).tolist() == [[2, 1]]


def test_decrypt_subtracts_centres_and_scales_back() -> None:
    data = reference.pack(np.array([[0, 2**18 - 1, 2**17], [5, 6, 7]], dtype=np.uint32), 18)
    mu = np.zeros((3, 4), dtype=np.uint32)
    mu[1, 1] = 1
    scaling = Scaling(None, np.array([2, 2, 1], np.float32), np.array([0, 1, 0], np.float32), 1.0, 0.0)
    out = KERNELS.decrypt(data, scaling, [Rows(mu, 1, 2)], 1, 18, np.array([0.5, 0.0]))
    assert out.dtype == np.float32
    assert out.tolist() == [[-4.0, -(2.0**16) + 1, -(2.0**32)], [0.0, 1.0, 0.0]]
