"""The check of a row's results in every backend: equal to the reference, word for word, and zero for exact results."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from veil.kernels.interface import Kernels, Rows, Scaling, SignVectors
from veil.kernels.reference import matmul, pack
from veil.kernels.reference_kernels import ReferenceKernels

pytestmark = pytest.mark.usefixtures("interpreter")

REFERENCE = ReferenceKernels()
TARGET = 0.99 * 2.0**31 / 1200
PLACES = {"one": [(0, 7, 1)], "several batches": [(0, 5, 3), (1, 0, 2), (0, 2, 0), (2, 7, 1)]}


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(5)


def vectors(draw: np.random.Generator, weights: Any, edges: list[int], count: int) -> SignVectors:
    signs = (2 * draw.integers(0, 2, (count, len(weights))) - 1).astype(np.int8)
    wide = weights.astype(np.int64)
    sums = [signs[:, a:b].astype(np.int64) @ wide[a:b] for a, b in itertools.pairwise(edges)]
    inverse = np.exp2(draw.integers(-4, 4, (len(sums), count)))
    longest = int(np.diff(edges).max())
    return SignVectors(np.array(edges, np.int32), signs, np.stack(sums).astype(np.int16), inverse, longest)


def encrypted(kernels: Kernels, x: Any, scaling: Scaling) -> tuple[Any, Any]:
    """What kernels keep of rows for the check, and the scales that come with it."""
    nothing = [Rows(kernels.zeros(len(x), x.shape[1]), 0, len(x))]
    _, scales, sent = kernels.encrypt_checked(x, scaling, nothing, 0, 24)
    return sent, kernels.to_numpy(scales)


def held(kernels: Kernels, own: SignVectors) -> SignVectors:
    return kernels.load_vectors(own.edges, own.signs, own.sums, own.inverse)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize(("slots", "width", "edges"), [(1, 1, [0, 1]), (9, 5, [0, 4, 9]), (70, 33, [0, 64, 65, 70])])
def test_residuals(
    kernels: Kernels, slots: int, width: int, edges: list[int], places: str, draw: np.random.Generator
) -> None:
    weights = draw.integers(-127, 128, (slots, width), dtype=np.int64).astype(np.int8)
    host_words = [draw.integers(0, 1 << 32, (8, slots + 9), dtype=np.uint32) for _ in range(3)]
    device_words = [kernels.asarray(words) for words in host_words]
    host = [Rows(host_words[batch], first, count) for batch, first, count in PLACES[places]]
    here = [Rows(device_words[batch], first, count) for batch, first, count in PLACES[places]]
    rows = sum(part.count for part in host)
    x = (draw.integers(-2048, 2048, (rows, width)) / 256).astype(np.float32)
    if rows > 3:
        x[1], x[2, 0], x[3, -1] = 0, np.nan, -np.inf
    divisors = np.exp2(draw.integers(-2, 3, width)).astype(np.float32)
    own = vectors(draw, weights, edges, 3)
    ones = np.ones(slots, np.float32)
    held_ones = kernels.asarray(ones)
    for bits, divided, fixed in ((16, None, 0.0), (13, divisors, 0.0), (24, None, 30.0)):
        scaling = Scaling(divided, ones, ones, TARGET, fixed)
        there = Scaling(None if divided is None else kernels.asarray(divided), held_ones, held_ones, TARGET, fixed)
        data = pack(draw.integers(0, 1 << bits, (rows, slots), dtype=np.uint32), bits)
        scales = np.exp2(draw.integers(-3, 4, rows).astype(np.float64))
        scales[:1] = 0.0
        sent, shown = encrypted(REFERENCE, x, scaling)
        scales[np.isnan(shown)] = np.nan
        expected, residuals = np.empty((rows, own.count)), kernels.asarray(np.empty((rows, own.count)))
        wanted, worst = REFERENCE.decrypt_checked(data, sent, scaling, host, 4, bits, scales, own, expected)
        packed, scales_here = (kernels.asarray(array) for array in (data, scales))
        sent_here, _ = encrypted(kernels, kernels.asarray(x), there)
        vectors_here = held(kernels, own)
        y, largest = kernels.decrypt_checked(packed, sent_here, there, here, 4, bits, scales_here, vectors_here, residuals)
        alone = kernels.decrypt(packed, there, here, 4, bits, scales_here)
        np.testing.assert_array_equal(kernels.to_numpy(y), kernels.to_numpy(alone))
        np.testing.assert_array_equal(kernels.to_numpy(y), wanted)
        np.testing.assert_array_equal(kernels.to_numpy(residuals), expected)
        assert float(largest) == worst == np.abs(expected).max()


def test_vectors_that_hold_one_scaling_check_rows_of_another(kernels: Kernels, draw: np.random.Generator) -> None:
    """One row takes a shorter way where its scaling is the first one that these vectors were used with."""
    weights, ones = draw.integers(-127, 128, (40, 24), dtype=np.int64).astype(np.int8), np.ones(40, np.float32)
    own = vectors(draw, weights, [0, 40], 3)
    there, x = held(kernels, own), draw.standard_normal((1, 24)).astype(np.float32)
    mu, data = (
        draw.integers(0, 1 << 32, (2, 40), dtype=np.uint32),
        pack(draw.integers(0, 1 << 16, (1, 40), dtype=np.uint32), 16),
    )
    first = Scaling(None, ones, ones, TARGET, 0.0)
    second = Scaling(np.full(24, 2.0, np.float32), 3 * ones, -ones, TARGET / 2, 20.0)
    for scaling in (first, second, first):
        sent, _ = encrypted(REFERENCE, x, scaling)
        wanted = REFERENCE.decrypt_checked(data, sent, scaling, [Rows(mu, 1, 1)], 0, 16, np.ones(1), own, np.empty((1, 3)))
        divisors = None if scaling.divisors is None else kernels.asarray(scaling.divisors)
        scale, bias = kernels.asarray(scaling.scale), kernels.asarray(scaling.bias)
        on_gpu = Scaling(divisors, scale, bias, scaling.target, scaling.fixed)
        on_kernels = on_gpu if kernels.name == "cuda" else scaling
        rows, out = [Rows(kernels.asarray(mu), 1, 1)], kernels.asarray(np.empty((1, 3)))
        packed, scales = (kernels.asarray(array) for array in (data, np.ones(1)))
        sent_here, _ = encrypted(kernels, kernels.asarray(x), on_kernels)
        y, worst = kernels.decrypt_checked(packed, sent_here, on_kernels, rows, 0, 16, scales, there, out)
        np.testing.assert_array_equal(kernels.to_numpy(y), wanted[0])
        assert float(worst) == wanted[1]


def test_exact_results_leave_nothing_and_a_changed_slot_what_it_was_changed_by(draw: np.random.Generator) -> None:
    """The reference itself, against the integers' product."""
    weights = draw.integers(-127, 128, (12, 7), dtype=np.int64).astype(np.int8)
    own = vectors(draw, weights, [0, 5, 12], 4)
    x = draw.standard_normal((2, 7)).astype(np.float32)
    scaling = Scaling(None, np.ones(12, np.float32), np.zeros(12, np.float32), TARGET, 0.0)
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    message = np.rint(x.astype(np.float64) * (TARGET / norms)).astype(np.int64).astype(np.uint32)
    results, mu = matmul(weights, message), draw.integers(0, 1 << 32, (2, 12), dtype=np.uint32)
    shares, (sent, _) = [Rows(mu, 0, 2)], encrypted(REFERENCE, x, scaling)
    residuals = np.empty((2, own.count))
    REFERENCE.decrypt_checked(pack(results + mu, 32), sent, scaling, shares, 0, 32, np.ones(2), own, residuals)
    assert not residuals.any()
    results[1, 6] += np.uint32(1000)
    _, worst = REFERENCE.decrypt_checked(pack(results + mu, 32), sent, scaling, shares, 0, 32, np.ones(2), own, residuals)
    found = residuals.reshape(2, 2, 4)
    assert not found[0].any() and not found[1, 0].any()
    np.testing.assert_array_equal(found[1, 1], 1000.0 * own.signs[:, 6] * own.inverse[1])
    assert worst == np.abs(found).max()
