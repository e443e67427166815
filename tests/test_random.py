"""Secret randomness: its distributions, tested at fixed seeds, and that an instance cannot leave its owner."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from veil.kernels import cpu
from veil.random import GaussianTable, SecretRng

SAMPLES = 1_000_000
SIGMAS = [3.2, 204.8]


def probabilities(sigma: float, largest: int) -> np.ndarray:
    """P(X = k) of round(sigma·g) for k = -largest..largest, then P(|X| > largest)."""
    edges = (np.arange(-largest, largest + 2) - 0.5) / sigma
    inside = np.diff(stats.norm.cdf(edges))
    return np.append(inside, 2 * stats.norm.sf((largest + 0.5) / sigma))


def samples(sigma: float, count: int = SAMPLES, seed: int = 1) -> np.ndarray:
    table = GaussianTable(sigma)
    words = SecretRng.insecure_for_tests(seed).words64(count)
    return cpu.gaussian(words, table.cumulative, table.guide)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_mean_and_variance(sigma: float) -> None:
    """A million samples: the mean within 4 standard errors σ/1000, the variance (σ² + 1/12) within 4·√2/1000."""
    drawn = samples(sigma).astype(np.float64)
    assert abs(drawn.mean()) < 4 * sigma / math.sqrt(SAMPLES)
    assert drawn.var() == pytest.approx(sigma**2 + 1 / 12, rel=4 * math.sqrt(2 / SAMPLES))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_frequencies(sigma: float) -> None:
    """Chi-square of a million samples against the exact probabilities, out to 4.4 σ and beyond, at the 0.1 % level."""
    largest = math.floor(4.4 * sigma)
    drawn = samples(sigma)
    inside = np.bincount(drawn[abs(drawn) <= largest] + largest, minlength=2 * largest + 1)
    counts = np.append(inside, (abs(drawn) > largest).sum())
    expected = probabilities(sigma, largest) * SAMPLES
    assert expected.min() > 5 or sigma > 100
    few = expected < 8
    merged = [np.append(values[~few], values[few].sum()) for values in (counts, expected)]
    assert stats.chisquare(*merged).pvalue > 0.001


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_tail(sigma: float) -> None:
    """What lies beyond 3, 4 and 5 σ in four million samples is within 5 standard deviations of its expectation."""
    drawn = abs(samples(sigma, 4 * SAMPLES, seed=2))
    for multiple in (3, 4, 5):
        edge = math.floor(multiple * sigma)
        expected = 2 * stats.norm.sf((edge + 0.5) / sigma) * drawn.size
        assert abs((drawn > edge).sum() - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("sigma", [1.0, 3.2, 204.8, 4096.0])
def test_the_gaussian_table_holds_63_bits_of_probability(sigma: float) -> None:
    table = GaussianTable(sigma)
    assert table.cumulative[-1] == 2**63
    assert (np.diff(table.cumulative.astype(object)) >= 0).all()
    for k in (0, 1, int(sigma), int(3 * sigma), int(6 * sigma)):
        exact = math.erf((k + 0.5) / (sigma * math.sqrt(2)))
        assert int(table.cumulative[k]) / 2**63 == pytest.approx(exact, abs=1e-15)
    tail = 2**63 - int(table.cumulative[int(7 * sigma)])
    assert tail == pytest.approx(2**63 * math.erfc((int(7 * sigma) + 0.5) / (sigma * math.sqrt(2))), rel=1e-3)
    assert len(table.cumulative) > 8.5 * sigma


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
    import hashlib

    key = hashlib.sha256(b"insecure" + (9).to_bytes(8, "little")).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    first, second = stream.update(bytes(24)), stream.update(bytes(8))
    assert rng.words64(3).tobytes() == first
    assert rng.words64(1).tobytes() == second


def test_the_stream_is_rekeyed_before_it_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretRng, "_REKEY_BYTES", 64)
    first, second = SecretRng.insecure_for_tests(1), SecretRng.insecure_for_tests(1)
    np.testing.assert_array_equal(first.words64(8), second.words64(8))
    assert first.words64(8).tobytes() != second.words64(8).tobytes()


def test_two_instances_differ() -> None:
    assert SecretRng().words64(4).tobytes() != SecretRng().words64(4).tobytes()


def test_an_instance_shows_nothing_and_stays_where_it_is() -> None:
    rng = SecretRng()
    assert repr(rng) == str(rng) == "<SecretRng>"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            leave(rng)


def test_public_and_secret_randomness_are_unrelated_types() -> None:
    from veil.seed import PublicSeed

    assert not issubclass(SecretRng, PublicSeed)
    assert not issubclass(PublicSeed, SecretRng)
    assert not hasattr(SecretRng(), "seed")
