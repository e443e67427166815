"""The CPU kernels equal the reference exactly: on odd, empty, one-row and extreme shapes, at small sets and the default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.kernels import cpu, reference
from veil.kernels.ring import Ring, ring_of
from veil.params import Params, packed_bytes
from veil.random import GaussianTable

SETS = {
    "tiny": Params.insecure_tiny(),
    "unfolded": Params.insecure_tiny(skipped_levels=0),
    "deep-fold": Params.insecure_tiny(skipped_levels=3),
    "square": Params.insecure_tiny(skipped_levels=1, outer_degree=64),
    "inner-256": Params.insecure_tiny(inner_degree=256, special_prime_bits=27),
    "default": Params.default(),
}
FILLS = ("random", "largest", "zero")
few = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.fixture(params=SETS, ids=str)
def ring(request: pytest.FixtureRequest) -> Ring:
    return ring_of(SETS[request.param])


@pytest.fixture(params=[name for name in SETS if name != "default"], ids=str)
def small(request: pytest.FixtureRequest) -> Ring:
    return ring_of(SETS[request.param])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def residues(rng: np.random.Generator, ring: Ring, *shape: int, primes: int = 2, fill: str = "random") -> Any:
    """Residues [*shape, primes, N]: uniform with 0 and p - 1 in the first places, or all p - 1, or all 0."""
    parts = []
    for p in ring.moduli[:primes]:
        part = rng.integers(0, p, (*shape, ring.N), dtype=np.uint32)
        part[..., 0], part[..., 1] = p - 1, 0
        if fill != "random":
            part[:] = p - 1 if fill == "largest" else 0
        parts.append(part)
    return np.stack(parts, axis=-2)


def same(actual: Any, expected: Any) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


# Transforms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("fill", FILLS)
def test_transforms(ring: Ring, rows: int, fill: str, rng: np.random.Generator) -> None:
    for table in (*ring.tables, *ring.inner_tables):
        values = rng.integers(0, table.prime, (rows, table.degree), dtype=np.uint32)
        if fill != "random":
            values[:] = table.prime - 1 if fill == "largest" else 0
        same(cpu.ntt(values, table), reference.ntt(values, table))
        same(cpu.intt(values, table), reference.intt(values, table))


def test_transforms_keep_the_shape_and_the_input(rng: np.random.Generator) -> None:
    table = ring_of(SETS["tiny"]).tables[0]
    values = rng.integers(0, table.prime, (2, 3, table.degree), dtype=np.uint32)
    before = values.copy()
    same(cpu.ntt(values, table), reference.ntt(values, table))
    same(cpu.ntt(values[:, ::2], table), reference.ntt(values[:, ::2], table))
    same(cpu.intt(values[0, 0], table), reference.intt(values[0, 0], table))
    same(values, before)


# Outer layer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", FILLS)
def test_expansion_of_small_sets(small: Ring, fill: str, rng: np.random.Generator) -> None:
    _check_expansion(small, fill, rng, masks=3)


def test_expansion_of_the_default_set(rng: np.random.Generator) -> None:
    _check_expansion(ring_of(SETS["default"]), "random", rng, masks=1)


def _check_expansion(ring: Ring, fill: str, rng: np.random.Generator, masks: int) -> None:
    keys = residues(rng, ring, ring.levels, 2, primes=3, fill=fill)
    a = residues(rng, ring, fill=fill)
    digits, leaves = reference.expand_a(a, keys, ring)
    made = cpu.expand_a(a, cpu.load_keys(keys, ring), ring)
    same(made[0], digits)
    same(made[1], leaves)
    b = residues(rng, ring, masks, fill=fill)
    each = [digits, np.ascontiguousarray(digits[::-1]), digits][:masks]
    other = residues(rng, ring, ring.levels, 2, primes=3)
    keys_each = [keys, other, keys][:masks]
    expected = reference.expand_b(b, each, keys_each, ring)
    same(cpu.expand_b(b, each, [cpu.load_keys(part, ring) for part in keys_each], ring), expected)


def test_expansion_of_no_mask(small: Ring) -> None:
    out = cpu.expand_b(np.empty((0, 2, small.N), dtype=np.uint32), [], [], small)
    assert out.shape == (2, small.N, 0, small.leaves)


@pytest.mark.parametrize("masks", [1, 2, 3, 16])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("fill", FILLS)
def test_product(small: Ring, masks: int, blocks: int, fill: str, rng: np.random.Generator) -> None:
    _check_product(small, masks, blocks * small.fold, fill, rng)


@pytest.mark.parametrize("fill", ["random", "largest"])
def test_product_of_the_default_set(fill: str, rng: np.random.Generator) -> None:
    ring = ring_of(SETS["default"])
    _check_product(ring, 3, ring.fold, fill, rng)


@pytest.mark.parametrize(("masks", "rows"), [(0, 4), (2, 0)])
def test_product_of_nothing(masks: int, rows: int, rng: np.random.Generator) -> None:
    _check_product(ring_of(SETS["tiny"]), masks, rows, "random", rng)


def _check_product(ring: Ring, masks: int, rows: int, fill: str, rng: np.random.Generator) -> None:
    shapes = [(ring.N, rows, ring.leaves), (ring.N, masks, ring.leaves)]
    hint, leaves = (np.empty((2, *shape), dtype=np.uint32) for shape in shapes)
    for i, p in enumerate(ring.moduli[:2]):
        for array in (hint, leaves):
            values = rng.integers(0, p, array.shape[1:], dtype=np.uint32)
            array[i] = values if fill == "random" else p - 1 if fill == "largest" else 0
    same(cpu.product(hint, leaves, ring), reference.product(hint, leaves, ring))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_combination(ring: Ring, fill: str, blocks: int, rng: np.random.Generator) -> None:
    masks, bits = 2, 20
    products = residues(rng, ring, masks, blocks * ring.fold, fill=fill)
    keys = residues(rng, ring, ring.fold - 1, 2, primes=3, fill=fill)
    digits, table = reference.combine_a(products[0], keys, bits, ring)
    made = cpu.combine_a(products[0], cpu.load_keys(keys, ring), bits, ring)
    same(made[0], digits)
    same(made[1], table)
    assert table.max() < 1 << bits
    loaded = [cpu.load_keys(keys, ring)] * masks
    for out_bits in (18, 32):
        expected = reference.combine_b(products, [digits] * masks, [keys] * masks, out_bits, ring)
        same(cpu.combine_b(products, [digits] * masks, loaded, out_bits, ring), expected)


def test_combination_of_nothing() -> None:
    ring = ring_of(SETS["tiny"])
    keys = np.zeros((ring.fold - 1, 2, 3, ring.N), dtype=np.uint32)
    digits, table = cpu.combine_a(np.empty((0, 2, ring.N), dtype=np.uint32), keys, 20, ring)
    assert digits.shape == (0, ring.fold - 1, 2, 3, ring.N)
    assert table.shape == (0,)


# The hint, and products with a secret ------------------------------------------------------------------------------------


def widths(ring: Ring) -> list[tuple[int, int]]:
    return [(1, 1), (1, ring.n), (5, ring.n // 2 + 3), (3, 2 * ring.n + 1), (2, 17 * ring.n)]


def test_inner_hint(ring: Ring, rng: np.random.Generator) -> None:
    for rows, width in widths(ring):
        weights = rng.integers(-128, 128, (rows, width), dtype=np.int8)
        a = rng.integers(0, 2**32, (-(-width // ring.n), ring.n), dtype=np.uint32)
        same(cpu.inner_hint(weights, a, 18, ring), reference.inner_hint(weights, a, 18, ring))


@pytest.mark.parametrize("weight", [-128, 127, 0])
@pytest.mark.parametrize("word", [0, 2**31, 2**31 - 1, 2**32 - 1])
def test_inner_hint_at_the_extremes(weight: int, word: int) -> None:
    for name in ("tiny", "default"):
        ring = ring_of(SETS[name])
        chunks = 34 if name == "tiny" else 17
        weights = np.full((2, chunks * ring.n), weight, dtype=np.int8)
        a = np.full((chunks, ring.n), word, dtype=np.uint32)
        same(cpu.inner_hint(weights, a, 18, ring), reference.inner_hint(weights, a, 18, ring))


def test_inner_hint_of_no_rows() -> None:
    ring = ring_of(SETS["tiny"])
    a = np.ones((1, ring.n), dtype=np.uint32)
    assert cpu.inner_hint(np.empty((0, 3), dtype=np.int8), a, 18, ring).shape == (0, ring.n)


@pytest.mark.parametrize("fill", ["random", "least", "largest"])
def test_outer_hint_of_small_sets(small: Ring, fill: str, rng: np.random.Generator) -> None:
    for slots in (0, 1, small.N - 3, small.N):
        _check_outer_hint(small, slots, fill, rng)


def test_outer_hint_of_the_default_set(rng: np.random.Generator) -> None:
    _check_outer_hint(ring_of(SETS["default"]), 5, "random", rng)


def _check_outer_hint(ring: Ring, slots: int, fill: str, rng: np.random.Generator) -> None:
    block = rng.integers(-(2**17), 2**17, (slots, ring.n), dtype=np.int32)
    if fill != "random":
        block[:] = -(2**17) if fill == "least" else 2**17 - 1
    same(cpu.outer_hint(block, ring), reference.outer_hint(block, ring))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_secret_products(ring: Ring, count: int, rng: np.random.Generator) -> None:
    for tables, degree in ((ring.inner_tables, ring.n), (ring.tables, ring.N)):
        values = rng.integers(0, 2**32, (count, degree), dtype=np.uint32).view(np.int32)
        values[:1] = -(2**31)
        public = reference.centred_points(values, tables, ring)
        same(cpu.centred_points(values, tables, ring), public)
        for secret in (rng.integers(-1, 2, degree), np.ones(degree), -np.ones(degree), np.zeros(degree)):
            points = reference.centred_points(secret[None].astype(np.int32), tables, ring)[0]
            expected = reference.secret_products(public, points, tables, ring)
            same(cpu.secret_products(public, points, tables, ring), expected)


def test_load_inner(ring: Ring, rng: np.random.Generator) -> None:
    a = rng.integers(0, 2**32, (3, ring.n), dtype=np.uint32)
    a[0] = 2**31
    same(cpu.load_inner(a, ring), reference.load_inner(a, ring))


# Online ---------------------------------------------------------------------------------------------------------------


SHAPES = [(1, 1, 1), (5, 3, 1), (257, 100, 1), (300, 64, 5), (70, 33, 4), (8, 8, 0), (0, 8, 2), (64, 1, 3), (1, 4097, 2)]


@pytest.mark.parametrize(("out", "width", "rows"), SHAPES)
@pytest.mark.parametrize("extreme", [False, True])
def test_matmul_and_answer(out: int, width: int, rows: int, extreme: bool, rng: np.random.Generator) -> None:
    weights = rng.integers(-128, 128, (out, width), dtype=np.int8)
    x = rng.integers(0, 2**32, (rows, width), dtype=np.uint32)
    h = rng.integers(0, 2**32, (rows, out), dtype=np.uint32)
    if extreme:
        weights[:], x[:], h[:] = -128, 2**32 - 1, 2**31
        weights[::2] = 127
    same(cpu.matmul(weights, x), reference.matmul(weights, x))
    for input_bits, result_bits in ((24, 18), (32, 24), (16, 8)):
        data = reference.pack(x >> np.uint32(32 - input_bits), input_bits)
        expected = reference.answer(data, weights, h, input_bits, result_bits)
        same(cpu.answer(data, weights, h, input_bits, result_bits), expected)
        same(cpu.answer(data, weights, h, input_bits, result_bits, serial=True), expected)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 64), (3, 43), (130, 257)], ids=str)
def test_read_lines(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    weights = rng.integers(-128, 128, shape, dtype=np.int8)
    for first, last in ((0, weights.size), (0, weights.size // 2), (weights.size // 3, weights.size), (0, 0)):
        assert cpu.read_lines(weights, first, last) == reference.read_lines(weights, first, last)


@given(st.integers(0, 2**32), st.integers(1, 80), st.integers(1, 80), st.integers(0, 9))
@few
def test_matmul_of_any_shape(seed: int, out: int, width: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.integers(-128, 128, (out, width), dtype=np.int8)
    x = draw.integers(0, 2**32, (rows, width), dtype=np.uint32)
    same(cpu.matmul(weights, x), reference.matmul(weights, x))


@pytest.mark.parametrize("bits", range(1, 33))
def test_pack_and_unpack_of_every_width(bits: int, rng: np.random.Generator) -> None:
    for shape in ((1, 1), (3, 1000), (2, 1025), (1, 2048), (0, 5), (2, 0)):
        values = rng.integers(0, 2**bits, shape, dtype=np.uint64).astype(np.uint32)
        for words in (values, np.full(shape, 2**bits - 1, dtype=np.uint32)):
            data = reference.pack(words, bits)
            same(cpu.pack(words, bits), data)
            same(cpu.unpack(data, shape[1], bits), words)
            same(reference.unpack(data, shape[1], bits), words)


@given(st.integers(1, 32), st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3000))
@few
def test_unpack_undoes_pack(bits: int, seed: int, rows: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (rows, count), dtype=np.uint64).astype(np.uint32)
    data = cpu.pack(values, bits)
    assert data.shape == (rows, packed_bytes(count, bits))
    same(cpu.unpack(data, count, bits), values)


@pytest.mark.parametrize("sigma", [1.0, 3.2, 204.8, 4096.0])
def test_gaussian(sigma: float, rng: np.random.Generator) -> None:
    table = GaussianTable(sigma)
    words = rng.integers(0, 2**64, 20_011, dtype=np.uint64)
    edges = table.cumulative[:-1].astype(object)
    near = np.array([(int(edge) + d) * 2 + s for edge in edges[:50] for d in (-1, 0) for s in (0, 1)], dtype=np.uint64)
    for drawn in (words, near, np.array([0, 1, 2**64 - 1, 2**64 - 2], dtype=np.uint64), words[:0]):
        expected = reference.gaussian(drawn, table.cumulative, table.guide)
        same(cpu.gaussian(drawn, table.cumulative, table.guide), expected)


ROWS = [(0, 4), (1, 1), (3, 50), (2, 1025)]


@pytest.mark.parametrize("shape", ROWS)
def test_encrypt_decrypt_and_dequantize(shape: tuple[int, int], rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape).astype(np.float32)
    x[:1, :1] = 0
    masks = rng.integers(0, 2**32, shape, dtype=np.uint32)
    tau = reference.scales(x, 2.0**30)
    for bits in (16, 24, 32):
        same(cpu.encrypt(x, tau, masks, bits), reference.encrypt(x, tau, masks, bits))
    for bits in (8, 18, 24):
        data = reference.pack(masks[::-1] >> np.uint32(32 - bits), bits)
        same(cpu.decrypt(data, masks, bits), reference.decrypt(data, masks, bits))
    scale, bias = (rng.standard_normal(shape[1]).astype(np.float32) for _ in range(2))
    tau[:1] = 0
    values = masks.view(np.int32)
    same(cpu.dequantize(values, tau, scale, bias), reference.dequantize(values, tau, scale, bias))


def test_encrypt_rounds_ties_to_even_and_fills_the_modulus() -> None:
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31 - 256, -(2.0**31)]], dtype=np.float32)
    masks, tau = np.full((1, 7), 2**32 - 1, dtype=np.uint32), np.ones(1)
    same(cpu.encrypt(x, tau, masks, 32), reference.encrypt(x, tau, masks, 32))


def test_scales_agree_to_the_error_of_a_sum() -> None:
    """The order of the sum differs: d positive terms, each addition off by half a unit, then a root (Higham, 4.2)."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 1000)).astype(np.float32)
    x[1], x[2, 3], x[3, 4], x[4] = 0, np.nan, np.inf, 1e38
    expected, made = reference.scales(x, 2.0**31), cpu.scales(x, 2.0**31)
    np.testing.assert_allclose(made, expected, rtol=(x.shape[1] / 4 + 4) * np.finfo(np.float64).eps)
    assert made[1] == 0
    assert np.isnan(made[2:4]).all()
    assert cpu.scales(x[:0], 1.0).shape == (0,)
