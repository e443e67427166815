"""Public randomness: repeatable, separated by label, uniform, and fixed for good by golden vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from veil.crypto import public
from veil.params import Params
from veil.seed import PublicSeed

VECTORS = json.loads((Path(__file__).parent / "vectors" / "public_expansion.json").read_text())
SETS = {"tiny": Params.insecure_tiny(), "default": Params.default()}
SEED = PublicSeed(bytes(range(32)))


def sha256(values: np.ndarray) -> str:
    assert values.dtype == np.uint32
    return hashlib.sha256(values.astype("<u4").tobytes()).hexdigest()


def expansion(params: Params, seed: PublicSeed) -> dict[str, str]:
    return {
        "words": sha256(seed.words("label", 100)),
        "inner_polynomials(0, n + 1)": sha256(public.inner_polynomials(seed, params, 0, params.n + 1)),
        "inner_polynomials(7, n)": sha256(public.inner_polynomials(seed, params, 7, params.n)),
        "outer_polynomials": sha256(public.outer_polynomials(seed, params)),
    }


@pytest.mark.parametrize("name", SETS)
def test_public_expansion_is_pinned(name: str) -> None:
    """A change here makes every bundle on disk useless: raise the format version with it."""
    seed = PublicSeed(bytes.fromhex(VECTORS["seed"]))
    assert expansion(SETS[name], seed) == VECTORS[name]


def test_the_word_stream_is_aes_128_in_counter_mode_under_a_key_of_seed_and_label() -> None:
    key = hashlib.shake_128(b"veil.v2\0" + SEED.seed + b"inner/0\0").digest(16)
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(3))
    expected = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(10)]
    assert SEED.words("inner/0", 10).tolist() == expected
    assert SEED.words("inner/0", 10).dtype == np.uint32


def test_shapes_and_ranges_of_the_public_polynomials() -> None:
    params = Params.insecure_tiny()
    for width, elements in ((1, 1), (params.r, 1), (params.r + 1, 2), (100 * params.r, 100)):
        assert public.inner_polynomials(SEED, params, 0, width).shape == (elements, params.k, params.m)
    outer = public.outer_polynomials(SEED, params)
    assert outer.shape == (params.terms, 2, params.N)
    for i, p in enumerate(params.outer_primes):
        assert 0.9 * p < outer[:, i].max() < p


def test_a_wider_group_begins_as_a_narrower_one_does() -> None:
    """The polynomials of a group are one stream, whatever its width."""
    params = Params.insecure_tiny()
    narrow, wide = (public.inner_polynomials(SEED, params, 5, width) for width in (9, 99))
    np.testing.assert_array_equal(wide[: len(narrow)], narrow)


def test_every_polynomial_is_another() -> None:
    """Groups, elements, ranks, terms and primes each have their own part of a stream; so has another seed."""
    params = Params.insecure_tiny()
    parts = [row for group in range(3) for row in public.inner_polynomials(SEED, params, group, 40).reshape(-1, params.m)]
    parts += list(public.outer_polynomials(SEED, params).reshape(-1, params.N))
    parts += list(public.inner_polynomials(PublicSeed(bytes(32)), params, 0, 40).reshape(-1, params.m))
    parts += list(public.outer_polynomials(PublicSeed(bytes(32)), params).reshape(-1, params.N))
    assert len({sha256(part) for part in parts}) == len(parts) > 60


def test_groups_of_one_digit_and_of_two_do_not_share_a_stream() -> None:
    """Labels are ended, so that no label and seed are another label and seed put together."""
    params = Params.insecure_tiny()
    found = {sha256(public.inner_polynomials(SEED, params, group, 8)) for group in (1, 10, 11, 110)}
    assert len(found) == 4


@given(st.integers(2, 2**32 - 1), st.integers(0, 300))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_uniform_values_are_below_any_modulus(modulus: int, count: int) -> None:
    values = SEED.uniform("x", count, modulus)
    assert values.shape == (count,)
    assert count == 0 or values.max() < modulus
    np.testing.assert_array_equal(values[: count // 2], SEED.uniform("x", count // 2, modulus))


@pytest.mark.parametrize("modulus", [3, 5 * 2**29, Params.default().outer_primes[1]])
def test_uniform_values_are_uniform(modulus: int) -> None:
    """Chi-square over at most 50 cells, 100,000 values, at the 0.1 % level; the seed is fixed."""
    cells = min(modulus, 50)
    values = SEED.uniform("uniformity", 100_000, modulus).astype(np.int64) * cells // modulus
    assert stats.chisquare(np.bincount(values, minlength=cells)).pvalue > 0.001


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, got {length}"):
        PublicSeed(bytes(length))


def test_fresh_seeds_differ() -> None:
    assert len({PublicSeed.fresh().seed for _ in range(50)}) == 50
