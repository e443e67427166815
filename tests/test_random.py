"""Secret randomness: its distributions, tested at fixed seeds, and that an instance cannot leave its owner."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from veil.kernels.backend import kernels_for
from veil.kernels.gaussian import GaussianTable
from veil.random import SecretRng
from veil.seed import PublicSeed

SAMPLES = 1_000_000
SIGMAS = [1.0, 3.2, 12.0]


def probabilities(sigma: float, largest: int) -> np.ndarray:
    """P(X = k) of round(sigma·g) for k = -largest..largest, then P(|X| > largest)."""
    edges = (np.arange(-largest, largest + 2) - 0.5) / sigma
    inside = np.diff(stats.norm.cdf(edges))
    return np.append(inside, 2 * stats.norm.sf((largest + 0.5) / sigma))


@pytest.fixture(params=["cpu", "reference"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def samples(device: str, sigma: float, count: int = SAMPLES, seed: int = 1) -> np.ndarray:
    drawn = kernels_for(device).errors(SecretRng.insecure_for_tests(seed), sigma).draw(count)
    assert drawn.dtype == np.int8 and drawn.shape == (count,)
    return drawn.astype(np.int64)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_mean_and_variance(device: str, sigma: float) -> None:
    """A million samples: the mean within 5 standard errors σ/1000, the variance σ² + 1/12 within 5·√2/1000 of it."""
    drawn, variance = samples(device, sigma), sigma**2 + 1 / 12
    assert abs(drawn.mean()) < 5 * math.sqrt(variance / SAMPLES)
    assert drawn.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / SAMPLES))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_frequencies(device: str, sigma: float) -> None:
    """Chi-square of a million samples against the exact probabilities, out to 4.4 σ and beyond, at the 0.1 % level."""
    largest = math.floor(4.4 * sigma)
    drawn = samples(device, sigma)
    inside = np.bincount(drawn[abs(drawn) <= largest] + largest, minlength=2 * largest + 1)
    counts = np.append(inside, (abs(drawn) > largest).sum())
    expected = probabilities(sigma, largest) * SAMPLES
    few = expected < 8
    merged = [np.append(values[~few], values[few].sum()) if few.any() else values for values in (counts, expected)]
    assert stats.chisquare(*merged).pvalue > 0.001


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_tail(sigma: float) -> None:
    """What lies beyond 3, 4 and 5 σ in four million samples is within 5 standard deviations of its expectation."""
    drawn = abs(samples("cpu", sigma, 4 * SAMPLES, seed=2))
    for multiple in (3, 4, 5):
        edge = math.floor(multiple * sigma)
        expected = 2 * stats.norm.sf((edge + 0.5) / sigma) * drawn.size
        assert abs((drawn > edge).sum() - expected) < 5 * max(1.0, math.sqrt(expected))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_samples_beside_each_other_are_unrelated(device: str, sigma: float) -> None:
    """The correlation of each sample with the next four in a million: within 5/1000."""
    drawn = samples(device, sigma, seed=4).astype(np.float64)
    for lag in range(1, 5):
        assert abs((drawn[lag:] * drawn[:-lag]).mean()) < 5 * drawn.var() / math.sqrt(SAMPLES)


def test_errors_have_the_shape_asked_for(device: str) -> None:
    source = kernels_for(device).errors(SecretRng(), 3.2)
    for shape in ((0,), (1,), (3, 5), (2, 0, 4), (8, 1000)):
        assert source.draw(*shape).shape == shape


@pytest.mark.parametrize("sigma", [1.0, 3.2, 7.7, 12.0])
def test_the_gaussian_table_holds_64_bits_of_probability(sigma: float) -> None:
    """Each bound is the cumulative probability in units of 2^-64, to the precision of a float's tail."""
    table = GaussianTable(sigma)
    bounds = [int(bound) for bound in table.bounds]
    assert len(bounds) == 2 * table.largest
    assert bounds == sorted(bounds)
    assert [2**64 - bound for bound in reversed(bounds)] == bounds, "k and -k have the same probability"
    assert table.largest > 8.5 * sigma
    for k, bound in enumerate(bounds[: table.largest]):
        exact = math.erfc((table.largest - k - 0.5) / (sigma * math.sqrt(2))) / 2
        assert float(Fraction(bound, 2**64)) == pytest.approx(exact, rel=1e-12, abs=2.0**-64)


@pytest.mark.parametrize("sigma", [1.0, 3.2, 12.0])
def test_the_upper_sixteen_bits_decide_where_they_can(sigma: float) -> None:
    """For each of 65,536 values the lowest and the highest word agree with the table, or it says that it is not clear."""
    table = GaussianTable(sigma)
    upper = np.arange(1 << 16, dtype=np.uint16)
    lowest = table.resolve(upper, np.zeros(1 << 16, dtype=np.uint64))
    highest = table.resolve(upper, np.full(1 << 16, 2**64 - 1, dtype=np.uint64))
    clear = table.values != GaussianTable.UNCLEAR
    np.testing.assert_array_equal(clear, lowest == highest)
    np.testing.assert_array_equal(table.values[clear], lowest[clear])
    assert 0 < (~clear).sum() <= 2 * table.largest


def test_resolving_is_exact_at_every_bound() -> None:
    table = GaussianTable(3.2)
    for place, bound in enumerate(int(value) for value in table.bounds):
        for word, expected in ((bound - 1, place), (bound, place + 1)):
            upper = np.array([word >> 48], dtype=np.uint16)
            found = table.resolve(upper, np.array([word & (2**48 - 1)], dtype=np.uint64))
            assert found.tolist() == [expected - table.largest]


@pytest.mark.parametrize("sigma", [0.0, -1.0, 12.1, math.nan, math.inf])
def test_a_deviation_that_does_not_fit_bytes_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="expected up to 12"):
        GaussianTable(sigma)


def test_both_processors_draw_the_same_samples() -> None:
    first, second = (samples(device, 3.2, 100_001, seed=9) for device in ("cpu", "reference"))
    np.testing.assert_array_equal(first, second)


def test_ternary_is_uniform() -> None:
    """A million values: chi-square over {-1, 0, 1}, and over pairs, at the 0.1 % level."""
    values = SecretRng.insecure_for_tests(3).ternary(SAMPLES)
    assert values.dtype == np.int8
    assert set(values.tolist()) == {-1, 0, 1}
    assert stats.chisquare(np.bincount(values + 1)).pvalue > 0.001
    pairs = 3 * (values[::2] + 1) + values[1::2] + 1
    assert stats.chisquare(np.bincount(pairs)).pvalue > 0.001


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 4096])
def test_ternary_gives_as_many_as_asked(count: int) -> None:
    assert SecretRng().ternary(count).shape == (count,)


def test_words_are_the_chacha20_stream() -> None:
    rng = SecretRng.insecure_for_tests(9)
    key = hashlib.sha256(b"insecure" + (9).to_bytes(8, "little")).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    parts = [stream.update(bytes(size)) for size in (24, 8, 6)]
    assert rng.words64(3).tobytes() == parts[0]
    assert rng.words64(1).tobytes() == parts[1]
    assert rng.words16(3).tobytes() == parts[2]


def test_the_stream_is_rekeyed_before_it_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretRng, "_REKEY_BYTES", 64)
    first, second = SecretRng.insecure_for_tests(1), SecretRng.insecure_for_tests(1)
    np.testing.assert_array_equal(first.words64(8), second.words64(8))
    assert first.words64(8).tobytes() != second.words64(8).tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_does_not_go_on_with_its_parents_stream() -> None:
    """Parent and child would make the same secrets, and send different rows under the same pads."""
    rng = SecretRng.insecure_for_tests(6)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, rng.words64(4).tobytes())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as drawn_by_child:
        drawn = drawn_by_child.read()
    assert os.waitpid(child, 0)[1] == 0
    own = rng.words64(4).tobytes()
    assert own == SecretRng.insecure_for_tests(6).words64(4).tobytes()
    assert len(drawn) == len(own) and drawn != own


def test_two_instances_differ() -> None:
    assert SecretRng().words64(4).tobytes() != SecretRng().words64(4).tobytes()


def leaves_refused(thing: Any) -> None:
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            leave(thing)


def test_an_instance_shows_nothing_and_stays_where_it_is() -> None:
    rng = SecretRng()
    assert repr(rng) == str(rng) == "<SecretRng>"
    leaves_refused(rng)


def test_public_and_secret_randomness_are_unrelated_types() -> None:
    assert not issubclass(SecretRng, PublicSeed)
    assert not issubclass(PublicSeed, SecretRng)
    assert not hasattr(SecretRng(), "seed")
