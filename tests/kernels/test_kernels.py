"""Every backend equals the reference, word for word: one set of tests of the interface, on awkward shapes and values.

Without a GPU, Triton's interpreter runs the CUDA backend; sizes are what it does in a moment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from veil.crypto import public
from veil.errors import WireError
from veil.kernels.interface import TILE, GroupRows, Kernels, Rows, Scaling
from veil.kernels.reference import pack
from veil.kernels.reference_kernels import ReferenceKernels
from veil.kernels.ring import Ring, ring_of
from veil.params import Params, packed_bytes
from veil.random import SecretRng
from veil.seed import PublicSeed

pytestmark = pytest.mark.usefixtures("interpreter")

REFERENCE = ReferenceKernels()
SEED = PublicSeed(bytes(range(32)))
NARROW = Params.insecure_tiny(inner_rank=1, inner_degree=16, batch_rows=16, outer_degree=64)  # one term
WIDE = Params.insecure_tiny(inner_rank=2, inner_degree=32, batch_rows=16)  # four terms, w = 8
SETS = [pytest.param(NARROW, id="narrow"), pytest.param(WIDE, id="wide")]
TARGET = 0.99 * 2.0**31 / 1200
SHAPES = [(1, 1), (3, 7), (9, 5), (17, 64), (40, 33)]


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(7)


def same(kernels: Kernels, actual: Any, expected: Any) -> None:
    array = kernels.to_numpy(actual)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def words(draw: np.random.Generator, *shape: int, bits: int = 32) -> Any:
    return draw.integers(0, 1 << bits, shape, dtype=np.uint64).astype(np.uint32)


def weights_of(draw: np.random.Generator, *shape: int) -> Any:
    return draw.integers(-128, 128, shape, dtype=np.int8)


def residues(draw: np.random.Generator, ring: Ring, count: int) -> Any:
    """Points [count, terms, 2, N]; the last batch has the largest, and 0, in the first places."""
    parts = [draw.integers(0, p, (count, ring.terms, ring.N), dtype=np.uint32) for p in ring.primes]
    for part, p in zip(parts, ring.primes, strict=True):
        part[-1:, :, : ring.N // 2], part[-1:, :, -1] = p - 1, 0
    return np.stack(parts, axis=2)


def hint_rows(draw: np.random.Generator, ring: Ring, slots: int) -> Any:
    """H with the largest values of its bits among its own."""
    most = 1 << (ring.hint_bits - 1)
    rows = draw.integers(-most, most, (slots, ring.n)).astype(np.int32)
    rows[0], rows[-1] = most - 1, -most
    return rows


# Arrays --------------------------------------------------------------------------------------------------------------


def test_arrays(kernels: Kernels, draw: np.random.Generator) -> None:
    values = words(draw, 3, 5)
    same(kernels, kernels.asarray(values), values)
    held = kernels.asarray(values)
    assert kernels.asarray(held) is held
    same(kernels, kernels.zeros(2, 3), np.zeros((2, 3), np.uint32))
    same(kernels, kernels.concatenate([held, kernels.zeros(2, 5)]), np.concatenate([values, np.zeros((2, 5), np.uint32)]))
    same(kernels, kernels.concatenate([held]), values)
    received = np.frombuffer(bytes(range(12)), dtype=np.uint8).reshape(2, 6)  # not to be written to
    same(kernels, kernels.concatenate([kernels.asarray(received), kernels.asarray(received)]), np.tile(received, (2, 1)))
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4).T.requires_grad_()
    own = kernels.from_torch(tensor)
    same(kernels, own, np.ascontiguousarray(tensor.detach().numpy()))
    assert torch.equal(kernels.to_torch(own).cpu(), tensor.detach())


@pytest.mark.parametrize("bits", range(1, 33))
def test_packing(kernels: Kernels, bits: int, draw: np.random.Generator) -> None:
    for rows, count in [(0, 3), (2, 0), (2, 1), (3, 13), (1, 32)]:
        values = words(draw, rows, count, bits=bits)
        values[:, -1:] = (1 << bits) - 1
        data = kernels.pack(values, bits)
        assert data.dtype == np.uint8
        np.testing.assert_array_equal(data, pack(values, bits))
        back = kernels.unpack(data, count, bits)
        assert back.dtype == np.uint32
        np.testing.assert_array_equal(back, values)


# The server's half, once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", SETS)
@pytest.mark.parametrize(("slots", "width"), [(1, 1), (5, 7), (21, 33)])
def test_inner_hints(kernels: Kernels, params: Params, slots: int, width: int, draw: np.random.Generator) -> None:
    ring = ring_of(params)
    weights = weights_of(draw, slots, width)
    weights[0] = -128
    a = public.inner_polynomials(SEED, params, 3, width)
    expected = REFERENCE.inner_hint(weights, a, ring)
    (held,) = kernels.load_weights([weights])
    same(kernels, kernels.inner_hint(held, a, ring), expected)


@pytest.mark.parametrize("blocks", [1, TILE, TILE + 1])
def test_hints_of_some_blocks(kernels: Kernels, blocks: int, draw: np.random.Generator) -> None:
    ring = ring_of(NARROW)
    slots = blocks * ring.w - 1
    rows, batch = hint_rows(draw, ring, slots), residues(draw, ring, 1)
    hint, expected = kernels.new_hint(blocks, ring), REFERENCE.new_hint(blocks, ring)
    REFERENCE.fill_hint(expected, 0, rows, ring)
    for first in range(0, blocks, TILE):
        piece = rows[first * ring.w : (first + TILE) * ring.w]
        kernels.fill_hint(hint, first, kernels.asarray(np.ascontiguousarray(piece)), ring)
    answer = REFERENCE.prepare(expected, batch, 32, ring)
    same(kernels, kernels.prepare(hint, kernels.asarray(batch), 32, ring), answer)
    kept = hint.arrays()
    for array in kept.values():
        array.setflags(write=False)
    again = kernels.load_hint(kept, ring)
    assert again.blocks == blocks and again.nbytes == hint.nbytes >= blocks * ring.terms * 2 * ring.N * 3
    same(kernels, kernels.prepare(again, kernels.asarray(batch), 32, ring), answer)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_several_batches_at_once(kernels: Kernels, count: int, draw: np.random.Generator) -> None:
    ring = ring_of(WIDE)
    rows = hint_rows(draw, ring, 2 * ring.w)
    hint, expected = kernels.new_hint(2, ring), REFERENCE.new_hint(2, ring)
    kernels.fill_hint(hint, 0, kernels.asarray(rows), ring)
    REFERENCE.fill_hint(expected, 0, rows, ring)
    batches = residues(draw, ring, count)
    for bits in (32, ring.public_bits) if count < 2 else (32,):
        answer = REFERENCE.prepare(expected, batches, bits, ring)
        same(kernels, kernels.prepare(hint, kernels.asarray(batches), bits, ring), answer)


def test_uploads_are_read_and_checked(kernels: Kernels, draw: np.random.Generator) -> None:
    ring = ring_of(WIDE)
    points = residues(draw, ring, 3)
    size = packed_bytes(ring.N, ring.prime_bits)

    def packed(values: Any) -> Any:
        return kernels.asarray(pack(values.reshape(-1, ring.N), ring.prime_bits).reshape(len(values), ring.terms * 2 * size))

    same(kernels, kernels.decode_batches(packed(points), ring), points)
    same(kernels, kernels.decode_batches(packed(points[:0]), ring), points[:0])
    for prime in range(2):
        wrong = points.copy()
        wrong[1, -1, prime, -1] = ring.primes[prime]
        with pytest.raises(WireError, match=f"not below its modulus {ring.primes[prime]}"):
            kernels.decode_batches(packed(wrong), ring)
    with pytest.raises(WireError, match=f"expected {ring.terms * 2 * size} for each"):
        kernels.decode_batches(kernels.asarray(np.zeros((1, size), dtype=np.uint8)), ring)


# The client's half, offline ------------------------------------------------------------------------------------


def secrets(params: Params, count: int) -> tuple[Any, Any, Any]:
    """Secrets s [count, k, m] and z [count, N], and errors that are far from zero."""
    rng = SecretRng.insecure_for_tests(5)
    secret = rng.ternary(count * params.n).reshape(count, params.k, params.m)
    return secret, rng.ternary(count * params.N).reshape(count, params.N), REFERENCE.errors(rng, 12.0)


def test_errors_are_rounded_gaussians(kernels: Kernels) -> None:
    errors = kernels.errors(SecretRng.insecure_for_tests(1), 3.2)
    drawn = [kernels.to_numpy(errors.draw(2, 5000)).astype(float) for _ in range(2)]
    assert kernels.to_numpy(errors.draw(3)).dtype == np.int8
    for values in drawn:
        assert values.shape == (2, 5000)
        assert abs(values.mean()) < 0.16  # five standard deviations of the mean
        assert 3.1 < values.std() < 3.3
        assert 8 < np.abs(values).max() < 20
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("params", SETS)
def test_encrypted_batches(kernels: Kernels, params: Params) -> None:
    ring = ring_of(params)
    outer = public.outer_polynomials(SEED, params)
    for count in (0, 1, 3):
        secret, z, source = secrets(params, count)
        errors = source.draw(count, ring.terms, ring.N)
        errors[:, :, 0], errors[:, :, 1] = 127, -127
        held = [kernels.asarray(values) for values in (outer, z, secret, errors)]
        data = kernels.encrypt_batches(held[0], held[1], held[2], held[3], ring)
        same(kernels, data, REFERENCE.encrypt_batches(outer, z, secret, errors, ring))
        each = [
            REFERENCE.encrypt_batches(outer, z[n : n + 1], secret[n : n + 1], errors[n : n + 1], ring) for n in range(count)
        ] or [np.zeros((0, params.batch_bytes), np.uint8)]
        same(kernels, data, np.concatenate(each))


@pytest.mark.parametrize(("params", "elements"), [(NARROW, 17), (NARROW, 16), (WIDE, 1), (WIDE, 3)])
def test_pads(kernels: Kernels, params: Params, elements: int, draw: np.random.Generator) -> None:
    ring = ring_of(params)
    a = words(draw, elements, ring.k, ring.m)
    a[0], a[-1, :, 0] = 0x80000000, 0x7FFFFFFF
    for place, table in enumerate(ring.inner):  # what a prime divides, and what is beside that
        most = (1 << 31) // table.prime
        near = draw.integers(-most, most, ring.m) * table.prime + draw.integers(-1, 2, ring.m)
        a[-1, place % ring.k] = near.astype(np.int32).view(np.uint32)
    inner, expected = kernels.load_inner(a, ring), REFERENCE.load_inner(a, ring)
    for count in (0, 1, 2, 5):
        secret, _, source = secrets(params, count)
        errors = [source.draw(ring.T, elements * ring.r) for _ in range(count)]
        pads = kernels.pads(inner, kernels.asarray(secret), map(kernels.asarray, errors), ring)
        assert len(pads) == count
        for own, hidden, error in zip(pads, secret, errors, strict=True):
            same(kernels, own, REFERENCE.pads(expected, hidden[None], [error], ring)[0])


@pytest.mark.parametrize(("params", "blocks"), [(NARROW, 17), (WIDE, 1), (WIDE, 2)])
def test_shares_of_the_client(kernels: Kernels, params: Params, blocks: int, draw: np.random.Generator) -> None:
    ring = ring_of(params)
    _, z, _ = secrets(params, 3)
    table = words(draw, ring.T, blocks * ring.w, bits=ring.public_bits)
    table[0], table[1] = 1 << (ring.public_bits - 1), (1 << (ring.public_bits - 1)) - 1
    held, expected = kernels.load_public(table, ring), REFERENCE.load_public(table, ring)
    assert kernels.shares(held, kernels.asarray(z[:0]), ring.w, ring) == []
    for slots in (blocks * ring.w, blocks * ring.w - 3):
        made = kernels.shares(held, kernels.asarray(z), slots, ring)
        assert len(made) == len(z)
        for own, key in zip(made, z, strict=True):
            same(kernels, own, REFERENCE.shares(expected, key[None], slots, ring)[0])


# A row, online -------------------------------------------------------------------------------------------------------

PLACES = {
    "none": [],
    "one": [(0, 7, 1)],
    "some": [(0, 1, 3)],
    "batch": [(0, 0, 8)],
    "several batches": [(0, 5, 3), (1, 0, 2), (0, 2, 0), (2, 7, 1)],
}


class Material:
    """Three batches of 8 rows of words, and the rows of them that a place says."""

    def __init__(self, draw: np.random.Generator, kernels: Kernels, count: int) -> None:
        self._host = [words(draw, 8, count) for _ in range(3)]
        self._held = [kernels.asarray(batch) for batch in self._host]

    def rows(self, places: list[tuple[int, int, int]]) -> tuple[list[Rows], list[Rows]]:
        """For the reference, and for the backend."""
        host = [Rows(self._host[batch], first, count) for batch, first, count in places]
        return host, [Rows(self._held[batch], first, count) for batch, first, count in places]


def inputs(draw: np.random.Generator, rows: int, width: int) -> Any:
    """Rows whose squares add up without rounding; one of zeros, and two that are not finite, where there are enough."""
    x = (draw.integers(-2048, 2048, (rows, width)) / 256).astype(np.float32)
    if rows > 3:
        x[1], x[2, 0], x[3, -1] = 0, np.nan, -np.inf
    return x


def scalings(kernels: Kernels, divisors: Any, scale: Any, bias: Any, target: float, fixed: float) -> tuple[Scaling, Scaling]:
    held = [None if array is None else kernels.asarray(array) for array in (divisors, scale, bias)]
    return Scaling(divisors, scale, bias, target, fixed), Scaling(held[0], held[1], held[2], target, fixed)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(kernels: Kernels, shape: tuple[int, int], places: str, draw: np.random.Generator) -> None:
    count, width = shape
    weights = weights_of(draw, count, width)
    (held,) = kernels.load_weights([weights])
    material = Material(draw, kernels, max(shape) + 9)
    host, here = material.rows(PLACES[places])
    x = inputs(draw, sum(part.count for part in host), width)
    divisors = np.exp2(draw.integers(-2, 3, width)).astype(np.float32)
    scale, bias = (draw.standard_normal(count).astype(np.float32) for _ in range(2))
    for bits, divided, fixed in [((24, 16), None, 0.0), ((23, 13), divisors, 0.0), ((26, 24), None, 30.0)]:
        defined, own = scalings(kernels, divided, scale, bias, TARGET, fixed)
        data, scales = REFERENCE.encrypt(x, defined, host, 3, bits[0])
        made, shown = kernels.encrypt(kernels.asarray(x), own, here, 3, bits[0])
        same(kernels, shown, scales)
        same(kernels, made, data)
        assert kernels.finite(shown) == (len(x) <= 3)
        reply = REFERENCE.answer(data, weights, host, 2, bits)
        same(kernels, kernels.answer(made, held, here, 2, bits, serial=fixed > 0), reply)
        y = REFERENCE.decrypt(reply, defined, host, 5, bits[1], scales)
        same(kernels, kernels.decrypt(kernels.asarray(reply), own, here, 5, bits[1], shown), y)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("bits", range(1, 33))
def test_rows_of_every_number_of_bits(kernels: Kernels, bits: int, rows: int, draw: np.random.Generator) -> None:
    count, width, other = 10, 8 if bits % 2 else 5, 33 - bits
    weights = weights_of(draw, count, width)
    (held,) = kernels.load_weights([weights])
    host, here = Material(draw, kernels, 12).rows([(0, 3, rows)])
    defined, own = scalings(kernels, None, np.ones(count, np.float32), np.zeros(count, np.float32), TARGET, 0.0)
    x = inputs(draw, rows, width)
    data, scales = REFERENCE.encrypt(x, defined, host, 1, bits)
    made, shown = kernels.encrypt(kernels.asarray(x), own, here, 1, bits)
    same(kernels, made, data)
    reply = REFERENCE.answer(data, weights, host, 0, (bits, other))
    same(kernels, kernels.answer(made, held, here, 0, (bits, other)), reply)
    y = REFERENCE.decrypt(reply, defined, host, 2, other, scales)
    same(kernels, kernels.decrypt(kernels.asarray(reply), own, here, 2, other, shown), y)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("weight", [-128, -127, 127])
def test_extreme_values(kernels: Kernels, weight: int, rows: int) -> None:
    count, width = 9, 70
    weights = np.full((count, width), weight, dtype=np.int8)
    (held,) = kernels.load_weights([weights])
    for word in (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        material = np.full((8, width), word, dtype=np.uint32)
        host, here = [Rows(material, 0, rows)], [Rows(kernels.asarray(material), 0, rows)]
        for bits in ((24, 16), (32, 32)):
            data = pack(material[:rows] >> np.uint32(32 - bits[0]), bits[0])
            reply = REFERENCE.answer(data, weights, host, 0, bits)
            same(kernels, kernels.answer(kernels.asarray(data), held, here, 0, bits), reply)


def test_scales_of_any_numbers(kernels: Kernels, draw: np.random.Generator) -> None:
    """Sums of squares differ in their order, so scales in their last bits; rows are right for the scales that are given."""
    rows, width = 6, 37
    x = (draw.standard_normal((rows, width)) * np.exp(draw.standard_normal((rows, 1)) * 8)).astype(np.float32)
    divisors = np.exp(draw.standard_normal(width)).astype(np.float32)
    host, here = Material(draw, kernels, width).rows([(0, 0, rows)])
    one = np.ones(1, dtype=np.float32)
    defined, own = scalings(kernels, divisors, one, one, TARGET, 0.0)
    data, shown = kernels.encrypt(kernels.asarray(x), own, here, 0, 32)
    scales = kernels.to_numpy(shown)
    np.testing.assert_allclose(scales, REFERENCE.encrypt(x, defined, host, 0, 32)[1], rtol=1e-14)
    message = np.rint((x / divisors).astype(np.float64) * scales[:, None]).astype(np.int64).astype(np.uint32)
    same(kernels, data, pack(message + host[0].material[:rows], 32))


def test_weights_are_brought_nearer(kernels: Kernels, draw: np.random.Generator) -> None:
    (held,) = kernels.load_weights([weights_of(draw, 30, 40)])
    assert sum(1 for _ in kernels.prefetch(held)) <= 1


# All of it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes", [[(1, 1)], [(3, 7), (17, 64), (40, 33)], [(24, 128), (9, 256), (1, 384)], [(8, 48), (5, 16)]]
)
def test_rows_of_several_groups(kernels: Kernels, shapes: list[tuple[int, int]], draw: np.random.Generator) -> None:
    """Each group's results are its own product's; also with several rows and requests of a group, and of many bits."""
    bits = [(24, 16), (32, 32), (1, 31), (23, 15)]
    asked, host = [], []
    for number, (outputs, width) in enumerate(shapes * 2):
        up, down = bits[number % 4]
        weights, count = weights_of(draw, outputs, width), 1 + number % 3
        weights[0] = -128
        data, shares = pack(words(draw, count, width, bits=up), up), words(draw, 5, outputs + 3)
        (held,) = kernels.load_weights([weights])
        for _ in range(1 + number % 2):
            host.append(REFERENCE.answer(data, weights, [Rows(shares, 1, count)], 2, (up, down)))
            asked.append(GroupRows(data, held, [Rows(kernels.asarray(shares), 1, count)], 2, (up, down)))
    found = kernels.answer_groups(asked)
    assert found.packed.dtype == np.uint8
    for expected, (first, last) in zip(host, found.places, strict=True):
        np.testing.assert_array_equal(found.packed[first:last].reshape(expected.shape), expected)


def test_more_rows_than_a_launch_takes(kernels: Kernels, draw: np.random.Generator) -> None:
    weights, shares = weights_of(draw, 5, 9), words(draw, 70, 5)
    data = pack(words(draw, 70, 9, bits=24), 24)
    (held,) = kernels.load_weights([weights])
    found = kernels.answer_groups([GroupRows(data, held, [Rows(kernels.asarray(shares), 0, 70)], 0, (24, 16))])
    expected = REFERENCE.answer(data, weights, [Rows(shares, 0, 70)], 0, (24, 16))
    np.testing.assert_array_equal(found.packed.reshape(expected.shape), expected)


def test_a_row_through_both_halves(kernels: Kernels, draw: np.random.Generator) -> None:
    """What comes back is ``W·x`` up to the protocol's noise, for rows of any place in the batch."""
    params = WIDE
    ring = ring_of(params)
    slots, width = 11, 9
    weights = draw.integers(-127, 128, (slots, width), dtype=np.int8)
    secret, z, _ = secrets(params, 1)
    source = REFERENCE.errors(SecretRng.insecure_for_tests(2), 3.2)
    (held,) = kernels.load_weights([weights])
    a, outer = public.inner_polynomials(SEED, params, 0, width), public.outer_polynomials(SEED, params)
    hint = kernels.new_hint(params.blocks(slots), ring)
    kernels.fill_hint(hint, 0, kernels.inner_hint(held, a, ring), ring)
    table = kernels.to_numpy(kernels.prepare(hint, kernels.asarray(outer[None]), ring.public_bits, ring))[0]
    errors = kernels.asarray(source.draw(1, ring.terms, ring.N))
    secret, z = kernels.asarray(secret), kernels.asarray(z)
    upload = kernels.encrypt_batches(kernels.asarray(outer), z, secret, errors, ring)
    batch = kernels.decode_batches(upload, ring)
    h = kernels.prepare(hint, batch, 32, ring)[0]
    (mu,) = kernels.shares(kernels.load_public(table, ring), z, slots, ring)
    inner_errors = kernels.asarray(source.draw(ring.T, len(a) * ring.r))
    (pads,) = kernels.pads(kernels.load_inner(a, ring), secret, [inner_errors], ring)
    places = [(0, 3), (ring.T - 1, 1)]
    x = draw.standard_normal((4, width)).astype(np.float32)
    norm = float(np.sqrt((weights.astype(float) ** 2).sum(axis=1)).max())
    one = np.ones(slots, dtype=np.float32)
    _, own = scalings(kernels, None, one, 0 * one, 0.99 * 2.0**31 / norm, 0.0)
    data, scales = kernels.encrypt(kernels.asarray(x), own, [Rows(pads, *place) for place in places], 0, 28)
    reply = kernels.answer(data, held, [Rows(h, *place) for place in places], 0, (28, 24))
    y = kernels.to_numpy(kernels.decrypt(reply, own, [Rows(mu, *place) for place in places], 0, 24, scales))
    exact = x.astype(float) @ weights.astype(float).T
    assert 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(y - exact)) > 60
