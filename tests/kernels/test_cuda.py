"""The CUDA backend equals the reference exactly: on small sets in Triton's interpreter, on the default set on a card.

Without a card the interpreter stands in; the project's conftest.py chooses it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from veil.kernels import cuda, reference
from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.random import GaussianTable

U32 = np.uint32

pytestmark = pytest.mark.usefixtures("interpreter")

SETS = [
    pytest.param(Params.insecure_tiny(), id="tiny"),
    pytest.param(Params.insecure_tiny(skipped_levels=3, outer_degree=64), id="tiny-deep-fold"),
    pytest.param(Params.default(), id="default", marks=pytest.mark.gpu),
]


@pytest.fixture(params=SETS[1:])
def deep(request: pytest.FixtureRequest) -> Ring:
    """For what transforms hundreds of polynomials: a tenth of a second each in the interpreter."""
    return usable(request)


@pytest.fixture(params=[SETS[0], SETS[2]])
def shallow(request: pytest.FixtureRequest) -> Ring:
    """The same, where the fold makes the work."""
    return usable(request)


@pytest.fixture(params=SETS)
def ring(request: pytest.FixtureRequest) -> Ring:
    return usable(request)


def usable(request: pytest.FixtureRequest) -> Ring:
    assert cuda.interpreted() or cuda.available(), "without a card, TRITON_INTERPRET=1 before triton is imported"
    if cuda.interpreted() and request.node.get_closest_marker("gpu"):
        pytest.skip("needs a CUDA device")
    return ring_of(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def residues(rng: np.random.Generator, ring: Ring, *shape: int, count: int = 2) -> Any:
    """Uniform residues [*shape, count, N], with 0 and p - 1 in the first places."""
    parts = [rng.integers(0, p, (*shape, ring.N), dtype=U32) for p in ring.moduli[:count]]
    for part, p in zip(parts, ring.moduli, strict=False):
        part[..., 0], part[..., 1] = p - 1, 0
    return np.stack(parts, axis=-2)


def put(values: Any) -> torch.Tensor:
    return cuda.asarray(values)


def put_indices(values: list[int]) -> torch.Tensor:
    return put(np.array(values, dtype=np.int32))


def assert_equal(actual: torch.Tensor, expected: Any) -> None:
    array = cuda.to_numpy(actual)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_arrays_keep_their_type() -> None:
    for dtype in (np.uint8, np.int8, np.int32, np.uint32, np.uint64, np.float32, np.float64):
        values = np.arange(3, dtype=dtype)
        assert_equal(put(values), values)


def test_transforms(ring: Ring, rng: np.random.Generator) -> None:
    for table in (*ring.tables, *ring.inner_tables):
        for rows in (0, 2):
            values = rng.integers(0, table.prime, (rows, table.degree), dtype=U32)
            values[:1] = table.prime - 1
            points = cuda.ntt(put(values), table)
            assert_equal(points, reference.ntt(values, table))
            assert_equal(cuda.intt(points, table), values)


def test_centred_points(ring: Ring, rng: np.random.Generator) -> None:
    for tables in (ring.tables[:2], ring.inner_tables):
        tables = ring.inner_tables if tables is ring.inner_tables else ring.tables
        values = rng.integers(-(1 << 31), 1 << 31, (3, tables[0].degree), dtype=np.int64).astype(np.int32)
        values[0, :6] = [-(1 << 31), (1 << 31) - 1, 0, -1, 1, ring.moduli[0]]
        assert_equal(cuda.centred_points(put(values), tables, ring), reference.centred_points(values, tables, ring))
    words = rng.integers(0, 1 << 32, (2, ring.n), dtype=U32)
    assert_equal(cuda.load_inner(put(words), ring), reference.load_inner(words, ring))


def test_expansion(deep: Ring, rng: np.random.Generator) -> None:
    """Two sets on the a side; three masks of two sets and two epochs on the b side."""
    ring = deep
    a = residues(rng, ring, 2)
    public_keys = residues(rng, ring, ring.levels, 2, count=3)
    digits, leaves = cuda.expand_a(put(a), cuda.load_keys(put(public_keys), ring), ring)
    expected = [reference.expand_a(a[m], public_keys, ring) for m in range(2)]
    assert_equal(digits, np.stack([d for d, _ in expected]))
    assert_equal(leaves, np.stack([x for _, x in expected]))

    b = residues(rng, ring, 3)
    keys = residues(rng, ring, 2, ring.levels + 1, 2, count=3)
    store = cuda.load_keys(put(keys), ring)[:, 1:]  # a view, as the engine passes it
    sets, epochs = [1, 0, 1], [0, 1, 1]
    made = cuda.expand_b(put(b), digits, store, ring, put_indices(sets), put_indices(epochs))
    wanted = reference.expand_b(
        b,
        [expected[m][0] for m in sets],
        [keys[e, 1:] for e in epochs],
        ring,  # type: ignore[arg-type]
    )
    assert_equal(cuda.hint_to_reference(made), wanted)
    lists = cuda.expand_b(put(b[:2]), [digits[1], digits[0]], [store[0], store[1]], ring)
    assert_equal(lists, cuda.to_numpy(made[:2]))


@pytest.mark.parametrize(("rows", "masks"), [(1, 1), (4, 1), (3, 2), (8, 3), (9, 9), (4, 17), (0, 1), (4, 0)])
def test_product(ring: Ring, rng: np.random.Generator, rows: int, masks: int) -> None:
    hint = residues(rng, ring, rows, ring.leaves)
    leaves = residues(rng, ring, masks, ring.leaves)
    hint[:1, :, :, 0] = np.array([ring.moduli[:2]], dtype=U32) - 1
    leaves[:1, :, :, 0] = np.array([ring.moduli[:2]], dtype=U32) - 1
    order = (2, 3, 0, 1)
    expected = reference.product(
        np.ascontiguousarray(hint.transpose(order)), np.ascontiguousarray(leaves.transpose(order)), ring
    )
    assert_equal(cuda.product(put(hint), put(leaves), ring), expected)


def test_combination(shallow: Ring, rng: np.random.Generator) -> None:
    ring, blocks = shallow, 2
    products = residues(rng, ring, 2, blocks * ring.fold)
    public_keys = residues(rng, ring, ring.fold - 1, 2, count=3)
    digits, masks = cuda.combine_a(put(products), cuda.load_keys(put(public_keys), ring), 20, ring)
    expected = [reference.combine_a(products[m], public_keys, 20, ring) for m in range(2)]
    assert_equal(digits, np.stack([d for d, _ in expected]))
    assert_equal(masks, np.stack([x for _, x in expected]))

    products = residues(rng, ring, 3, blocks * ring.fold)
    keys = residues(rng, ring, 2, ring.levels + ring.fold - 1, 2, count=3)
    store = cuda.load_keys(put(keys), ring)[:, ring.levels :]
    sets, epochs = [1, 0, 1], [0, 1, 1]
    made = cuda.combine_b(put(products), digits, store, 32, ring, put_indices(sets), put_indices(epochs))
    wanted = reference.combine_b(
        products,
        [expected[m][0] for m in sets],
        [keys[e, ring.levels :] for e in epochs],
        32,
        ring,  # type: ignore[arg-type]
    )
    assert_equal(made, wanted)
    lists = cuda.combine_b(put(products[:2]), [digits[1], digits[0]], [store[0], store[1]], 32, ring)
    assert_equal(lists, wanted[:2])
    alone, _ = cuda.combine_a(put(products[0]), cuda.load_keys(put(public_keys), ring), 20, ring)
    assert_equal(alone, reference.combine_a(products[0], public_keys, 20, ring)[0])


@pytest.mark.parametrize(("rows", "chunks", "short"), [(5, 1, 0), (3, 2, 7), (1, 1, 63), (0, 1, 0)])
def test_inner_hint(ring: Ring, rng: np.random.Generator, rows: int, chunks: int, short: int) -> None:
    weights = rng.integers(-128, 128, (rows, chunks * ring.n - short), dtype=np.int64).astype(np.int8)
    a = rng.integers(0, 1 << 32, (chunks, ring.n), dtype=U32)
    a[0, :3] = [0, 0xFFFFFFFF, 0x80000000]
    assert_equal(cuda.inner_hint(put(weights), put(a), 18, ring), reference.inner_hint(weights, a, 18, ring))


def test_outer_hint(deep: Ring, rng: np.random.Generator) -> None:
    """A block that is not full, written into a store."""
    ring, missing = deep, 61
    block = rng.integers(-(1 << 17), 1 << 17, (ring.N - missing, ring.n), dtype=np.int64).astype(np.int32)
    store = cuda.asarray(np.zeros((2 * ring.fold, ring.leaves, 2, ring.N), dtype=U32))
    made = cuda.outer_hint(put(block), ring, out=store[ring.fold :])
    expected = reference.outer_hint(block, ring)
    assert_equal(cuda.hint_to_reference(made), expected)
    assert_equal(store[ring.fold :], cuda.to_numpy(made))
    assert_equal(cuda.hint_from_reference(put(expected)), cuda.to_numpy(made))


def test_secret_products(ring: Ring, rng: np.random.Generator) -> None:
    for tables in (ring.tables, ring.inner_tables):
        degree = tables[0].degree
        public = rng.integers(-(1 << 19), 1 << 19, (3, degree), dtype=np.int64).astype(np.int32)
        secret = rng.integers(-1, 2, (1, degree), dtype=np.int64).astype(np.int32)
        points = reference.centred_points(public, tables, ring)
        key = reference.centred_points(secret, tables, ring)[0]
        expected = reference.secret_products(points, key, tables, ring)
        assert_equal(cuda.secret_products(put(points), put(key), tables, ring), expected)


SHAPES = [(1, 1, 1), (1, 24, 64), (1, 37, 61), (3, 37, 61), (2, 8, 128), (17, 130, 129), (0, 4, 8), (1, 0, 8)]


@pytest.mark.parametrize(("masks", "rows", "width"), SHAPES)
def test_matmul(rng: np.random.Generator, masks: int, rows: int, width: int) -> None:
    weights = rng.integers(-128, 128, (rows, width), dtype=np.int64).astype(np.int8)
    x = rng.integers(0, 1 << 32, (masks, width), dtype=U32)
    assert_equal(cuda.matmul(put(weights), put(x)), reference.matmul(weights, x))


@pytest.mark.parametrize("bits", [8, 13, 18, 20, 24, 27, 30, 32])
def test_packing(rng: np.random.Generator, bits: int) -> None:
    for rows, count in ((1, 1), (3, 37), (2, 1100), (0, 4), (2, 0)):
        values = rng.integers(0, 1 << bits, (rows, count), dtype=U32)
        data = reference.pack(values, bits)
        assert_equal(cuda.pack(put(values), bits), data)
        assert_equal(cuda.unpack(put(data), count, bits), values)


@pytest.mark.parametrize(("masks", "rows", "width"), SHAPES)
@pytest.mark.parametrize(("input_bits", "result_bits"), [(24, 18), (20, 19), (32, 24), (17, 8)])
def test_answer(rng: np.random.Generator, masks: int, rows: int, width: int, input_bits: int, result_bits: int) -> None:
    weights = rng.integers(-128, 128, (rows, width), dtype=np.int64).astype(np.int8)
    weights[:1] = -128
    data = reference.pack(rng.integers(0, 1 << input_bits, (masks, width), dtype=U32), input_bits)
    h = rng.integers(0, 1 << 32, (masks, rows), dtype=U32)
    expected = reference.answer(data, weights, h, input_bits, result_bits)
    assert_equal(cuda.answer(put(data), put(weights), put(h), input_bits, result_bits), expected)


@pytest.mark.parametrize("sigma", [3.2, 204.8])
def test_gaussian(rng: np.random.Generator, sigma: float) -> None:
    table = GaussianTable(sigma)
    words = rng.integers(0, 1 << 64, 3000, dtype=np.uint64)
    words[:4] = [0, 1, (1 << 64) - 1, (1 << 64) - 2]
    words[4:6] = [int(table.cumulative[0]) << 1, (int(table.cumulative[0]) << 1) - 1]
    expected = reference.gaussian(words, table.cumulative, table.guide)
    assert_equal(cuda.gaussian(put(words), put(table.cumulative), put(table.guide)), expected)


def test_scales(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 1500)).astype(np.float32)
    x[1] = 0
    x[2, 3], x[3, 3] = np.nan, np.inf
    made = cuda.to_numpy(cuda.scales(put(x), 1.5e6))
    np.testing.assert_allclose(made, reference.scales(x, 1.5e6), rtol=1e-14)
    assert cuda.to_numpy(cuda.scales(put(x[:0]), 1.0)).shape == (0,)


@pytest.mark.parametrize("bits", [24, 20, 32])
def test_encrypt_and_decrypt(rng: np.random.Generator, bits: int) -> None:
    for rows, width in ((1, 1), (3, 37), (2, 1100), (0, 4)):
        x = rng.standard_normal((rows, width)).astype(np.float32)
        x[:, :1] = 0.5
        tau = rng.uniform(1e6, 2e8, rows)
        tau[:1] = 2**24 + 1  # halves: rounds to even
        masks = rng.integers(0, 1 << 32, (rows, width), dtype=U32)
        data = reference.encrypt(x, tau, masks, bits)
        assert_equal(cuda.encrypt(put(x), put(tau), put(masks), bits), data)
        assert_equal(cuda.decrypt(put(data), put(masks), bits), reference.decrypt(data, masks, bits))


def test_dequantize(rng: np.random.Generator) -> None:
    values = rng.integers(-(1 << 31), 1 << 31, (3, 1100), dtype=np.int64).astype(np.int32)
    tau = np.array([1.7e6, 0.0, 3.1e-5])
    scale, bias = (rng.standard_normal(1100).astype(np.float32) for _ in range(2))
    made = cuda.dequantize(put(values), put(tau), put(scale), put(bias))
    assert_equal(made, reference.dequantize(values, tau, scale, bias))


@pytest.mark.parametrize("width", [1, 37, 1100, 5000])
def test_scaled_rows(rng: np.random.Generator, width: int) -> None:
    """One launch for τ and the ciphertext, one for the plaintext: what the separate functions give."""
    x = rng.standard_normal((3, width)).astype(np.float32)
    x[1] = 0
    masks = rng.integers(0, 1 << 32, (3, width), dtype=U32)
    data, tau = cuda.encrypt_scaled(put(x), 1.5e7, put(masks), 24)
    np.testing.assert_allclose(cuda.to_numpy(tau), reference.scales(x, 1.5e7), rtol=1e-14)
    assert_equal(data, reference.encrypt(x, cuda.to_numpy(tau), masks, 24))
    packed = reference.pack(masks >> U32(14), 18)
    scale, bias = (rng.standard_normal(width).astype(np.float32) for _ in range(2))
    made = cuda.decrypt_scaled(put(packed), put(masks[::-1].copy()), 18, tau, put(scale), put(bias))
    values = reference.decrypt(packed, masks[::-1], 18)
    assert_equal(made, reference.dequantize(values, cuda.to_numpy(tau), scale, bias))


def test_capture_replays_the_step(ring: Ring, rng: np.random.Generator) -> None:
    values = put(rng.integers(0, ring.moduli[0], (2, ring.N), dtype=U32))
    results: list[torch.Tensor] = []

    def step() -> None:
        results[:] = [cuda.ntt(values, ring.tables[0])]

    replay = cuda.capture(step)
    again = rng.integers(0, ring.moduli[0], (2, ring.N), dtype=U32)
    values.copy_(put(again))
    replay()
    assert_equal(results[0], reference.ntt(again, ring.tables[0]))
