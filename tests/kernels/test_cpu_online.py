"""The CPU's online kernels equal their definition exactly: on odd, empty, one-row and extreme shapes, values and bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.kernels import reference
from veil.kernels.cpu import online, packing, product
from veil.kernels.cpu.sign_sums import halves_of
from veil.kernels.interface import Rows, Scaling
from veil.kernels.reference_kernels import ReferenceKernels
from veil.params import packed_bytes

SHAPES = ((1, 1), (1, 7), (3, 7), (3, 64), (17, 65), (130, 63), (9, 576), (65, 129), (5, 1000), (2, 9001))
ROWS = {0: 1, 1: 2, 2: 1, 3: 3, 4: 1, 5: 1, 6: 2, 7: 1, 8: 1, 9: 1, 13: 1, 40: 2}  # and threads
FILLS = ("random", "largest", "smallest")
TARGET = 0.99 * 2**31 / 1200


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def same(actual: Any, expected: Any) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def words(rng: np.random.Generator, shape: tuple[int, ...], bits: int, fill: str = "random") -> Any:
    """Words below 2^bits: random, all the largest, or all 1."""
    if fill == "random":
        return rng.integers(0, 1 << bits, shape, dtype=np.uint64).astype(np.uint32)
    return np.full(shape, (1 << bits) - 1 if fill == "largest" else 1, dtype=np.uint32)


def int8(rng: np.random.Generator, shape: tuple[int, int], fill: str = "random") -> Any:
    """Weights: random with -128, all -127, or all -128."""
    if fill == "random":
        return rng.integers(-128, 128, shape).astype(np.int8)
    return np.full(shape, -127 if fill == "largest" else -128, dtype=np.int8)


def guarded(shape: tuple[int, int], dtype: Any) -> tuple[Any, Any]:
    """An array in the middle of one whose first and last rows must stay as they are, and a check that they did."""
    whole = np.full((shape[0] + 2, shape[1]), 77, dtype=dtype)

    def untouched() -> None:
        assert (whole[0] == 77).all() and (whole[-1] == 77).all()

    return whole[1:-1], untouched


def answered(data: Any, weights: Any, shares: Any, row: int, column: int, up: int, down: int) -> Any:
    """The definition's reply to rows whose shares begin at this row and column."""
    rows = [Rows(shares, row, len(data))]
    return ReferenceKernels().answer(data, weights, rows, column, (up, down))


def added(x: Any, tau: Any, pads: Any, row: int, column: int, bits: int) -> Any:
    """The definition's rows for these τ, whose last digit depends on the order of a sum."""
    fine = np.isfinite(tau)
    message = np.zeros(x.shape, dtype=np.uint32)
    message[fine] = np.rint(x[fine].astype(np.float64) * tau[fine, None]).astype(np.int64).astype(np.uint32)
    pad = reference.gathered([Rows(pads, row, len(x))], column, x.shape[1])
    out = reference.pack(reference.top_bits(message + pad, bits), bits)
    out[~fine] = 0
    return out


def decrypted(data: Any, mu: Any, row: int, column: int, bits: int, shown: Any, scale: Any, bias: Any) -> Any:
    """The definition's results of rows whose μ begins at this row and column."""
    scaling = Scaling(None, scale, bias, TARGET, 0.0)
    return ReferenceKernels().decrypt(data, scaling, [Rows(mu, row, len(data))], column, bits, shown)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", range(1, 33))
def test_packing(bits: int, threads: int, rng: np.random.Generator) -> None:
    for rows in (0, 1, 3):
        for count in (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 63, 100, 1023, 1025, 2100):
            for fill in FILLS:
                values = words(rng, (rows, count), bits, fill)
                expected = reference.pack(values, bits)
                out, untouched = guarded(expected.shape, np.uint8)
                packing.pack(values, bits, threads, out)
                same(out, expected)
                untouched()
                back, untouched = guarded(values.shape, np.uint32)
                packing.unpack(expected, bits, threads, back)
                same(back, values)
                untouched()


def test_a_row_of_bytes_that_may_not_be_written(rng: np.random.Generator) -> None:
    values = words(rng, (1, 40), 24)
    data = np.frombuffer(reference.pack(values, 24).tobytes(), dtype=np.uint8).reshape(1, -1)
    back = np.empty_like(values)
    packing.unpack(data, 24, 1, back)
    same(back, values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [1, 8, 12, 16, 17, 23, 24, 32])
def test_products(shape: tuple[int, int], bits: int, rng: np.random.Generator) -> None:
    for rows, threads in ROWS.items():
        for fill in FILLS:
            weights = int8(rng, shape, fill)
            x = words(rng, (rows, shape[1]), bits, fill) << np.uint32(32 - bits)
            expected = reference.matmul(weights, x)
            for some in {1, threads}:
                out, untouched = guarded(expected.shape, np.uint32)
                product.matmul(weights, x, some, out)
                same(out, expected)
                untouched()


def test_products_without_columns_are_zero() -> None:
    out = np.full((2, 3), 5, dtype=np.uint32)
    product.matmul(np.empty((3, 0), np.int8), np.empty((2, 0), np.uint32), 1, out)
    same(out, np.zeros((2, 3), np.uint32))


def test_the_products_of_all_ones_and_the_lowest_weights() -> None:
    out = np.empty((1, 1), np.uint32)
    product.matmul(np.full((1, 3), -128, np.int8), np.full((1, 3), 0xFFFFFFFF, np.uint32), 1, out)
    assert out[0, 0] == 384  # -128·3·(-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers(shape: tuple[int, int], rng: np.random.Generator) -> None:
    count, width = shape
    bits = [(12, 8), (16, 14), (17, 15), (23, 18), (24, 24), (25, 31), (32, 32)]
    for rows, threads in ROWS.items():
        for input_bits, result_bits in bits if width < 1000 else bits[::2]:
            for fill in FILLS:
                data = reference.pack(words(rng, (rows, width), input_bits, fill), input_bits)
                weights = int8(rng, shape, fill)
                shares = words(rng, (rows + 3, count + 5), 32, fill)
                expected = answered(data, weights, shares, 2, 4, input_bits, result_bits)
                for some in {1, threads}:
                    out, untouched = guarded(expected.shape, np.uint8)
                    online.answer(data, weights, shares, 2, 4, input_bits, result_bits, some, out)
                    same(out, expected)
                    untouched()


@pytest.mark.parametrize("input_bits", range(12, 33))
def test_answers_at_every_number_of_bits(input_bits: int, rng: np.random.Generator) -> None:
    weights, shares = int8(rng, (43, 70)), words(rng, (7, 43), 32)
    data = reference.pack(words(rng, (7, 70), input_bits), input_bits)
    for result_bits in range(8, 33):
        expected = answered(data, weights, shares, 0, 0, input_bits, result_bits)
        out = np.empty_like(expected)
        online.answer(data, weights, shares, 0, 0, input_bits, result_bits, 1, out)
        same(out, expected)


def encrypted(x: Any, divisors: Any, fixed: float, pads: Any, bits: int, threads: int) -> tuple[Any, Any, Any]:
    """`online.encrypt` of rows with pads from row 1 and column 2 on: bytes, τ, and the τ by which results are read.

    What it gives for checks is compared with the rows; the bytes are the same without.
    """
    (rows, width), results = x.shape, []
    for halves in (0, halves_of(width)):
        out, untouched = guarded((rows, packed_bytes(width, bits)), np.uint8)
        sent, sent_untouched = guarded((rows, halves), np.int16)
        tau, shown = np.full(rows, 7.0), np.full(rows, 7.0)
        online.encrypt(x, divisors, TARGET, fixed, pads, 1, 2, bits, threads, out, tau, shown, sent)
        untouched()
        sent_untouched()
        results.append((out, tau, shown))
    for without, other in zip(*results, strict=True):
        np.testing.assert_array_equal(without, other)
    good = np.isfinite(tau)
    low, high = sent[good].reshape(-1, 2, halves // 2).astype(np.int64).transpose(1, 0, 2)
    divided = (x[good] / divisors if divisors.size else x[good]).astype(np.float64)
    message = np.rint(divided * tau[good, None]).astype(np.int64)
    assert not (low[:, width:].any() or high[:, width:].any())
    same((low + (high << 16))[:, :width].astype(np.uint32), message.astype(np.uint32))
    return out, tau, shown


@pytest.mark.parametrize("bits", range(8, 33))
@pytest.mark.parametrize("fixed", [0.0, 30.0])
def test_encryption(bits: int, fixed: float, rng: np.random.Generator) -> None:
    for rows in (0, 1, 2, 9):
        for width in (1, 7, 64, 577):
            x = (rng.standard_normal((rows, width)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)
            x[rows // 2 : rows // 2 + 1] = 0
            pads = words(rng, (rows + 2, width + 3), 32)
            for divisors in (np.empty(0, np.float32), rng.uniform(0.1, 9, width).astype(np.float32)):
                for threads in (1, 2):
                    out, tau, shown = encrypted(x, divisors, fixed, pads, bits, threads)
                    scaled = x / divisors if divisors.size else x
                    expected, expected_shown = reference.row_scales(scaled, TARGET, fixed)
                    np.testing.assert_allclose(tau, expected, rtol=1e-13)  # the order of the sum is free
                    np.testing.assert_allclose(shown, expected_shown, rtol=1e-13)
                    same(out, added(scaled, tau, pads, 1, 2, bits))


def test_a_fixed_norm_hides_the_row(rng: np.random.Generator) -> None:
    x = np.array([[3, 4], [0, 0], [30, 40]], dtype=np.float32)
    pads = np.zeros((4, 4), dtype=np.uint32)
    _, tau, shown = encrypted(x, np.empty(0, np.float32), 10.0, pads, 32, 1)
    np.testing.assert_allclose(tau, [TARGET / 10, TARGET / 10, TARGET / 50])
    np.testing.assert_allclose(shown, [TARGET / 10] * 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fixed", [0.0, 5.0])
def test_a_row_that_is_not_finite_is_not_encrypted(value: float, fixed: float, rng: np.random.Generator) -> None:
    x = np.ones((3, 9), dtype=np.float32)
    x[1, 4] = value
    pads = words(rng, (5, 12), 32, "largest")
    out, tau, _ = encrypted(x, np.empty(0, np.float32), fixed, pads, 24, 1)
    assert np.isnan(tau).tolist() == [False, True, False]
    assert not out[1].any()
    same(out, added(x, tau, pads, 1, 2, 24))


def test_a_divisor_of_zero_is_not_finite() -> None:
    divisors = np.array([1, 0], dtype=np.float32)
    out, tau, _ = encrypted(np.ones((1, 2), np.float32), divisors, 0.0, np.ones((3, 5), np.uint32), 16, 1)
    assert np.isnan(tau[0]) and not out.any()


def test_halves_are_rounded_to_even() -> None:
    tau = 0.5 * TARGET  # ‖x‖ = 2, and each x·τ is an odd multiple of a half where TARGET is odd
    x = np.array([[1, 1, -1, 1]], dtype=np.float32)
    out, seen, shown, none = np.empty((1, 16), np.uint8), np.empty(1), np.empty(1), np.empty((1, 0), np.int16)
    online.encrypt(x, np.empty(0, np.float32), 5.0, 0.0, np.zeros((1, 4), np.uint32), 0, 0, 32, 1, out, seen, shown, none)
    assert seen[0] == 2.5 and tau > 0
    assert out.view(np.int32).tolist() == [[2, 2, -2, 2]]


@pytest.mark.parametrize("bits", range(8, 33))
def test_decryption(bits: int, rng: np.random.Generator) -> None:
    for rows in (0, 1, 3, 9):
        for count in (1, 7, 130, 1025, 2049):
            for fill in FILLS:
                data = reference.pack(words(rng, (rows, count), bits, fill), bits)
                mu = words(rng, (rows + 2, count + 3), 32, fill)
                shown = rng.uniform(1e3, 1e9, rows)
                shown[rows // 2 : rows // 2 + 1] = 0
                scale, bias = rng.standard_normal((2, count)).astype(np.float32)
                expected = decrypted(data, mu, 1, 2, bits, shown, scale, bias)
                for threads in (1, 2):
                    y, untouched = guarded((rows, count), np.float32)
                    online.decrypt(data, mu, 1, 2, bits, shown, scale, bias, threads, y)
                    same(y, expected)
                    untouched()


def test_reading_lines(rng: np.random.Generator) -> None:
    weights = int8(rng, (10, 100))
    assert online.read_lines(weights, 128, 900) == int(weights.reshape(-1)[128:900:64].astype(np.int64).sum())
