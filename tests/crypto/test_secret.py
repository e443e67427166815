"""Keys and encryptions decrypt to what they should hold, an encryption happens once, and a key stays in memory."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from veil.crypto import public
from veil.crypto.secret import OuterKey, inner_secret, secret_points
from veil.kernels import cpu, reference
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed

SEED = PublicSeed(bytes(32))
SETS = {"tiny": Params.insecure_tiny(), "default": Params.default()}


@pytest.fixture
def tiny_key() -> OuterKey:
    return OuterKey(SETS["tiny"], cpu, SecretRng.insecure_for_tests(4))


def phase(a: Any, b: Any, z: Any, table: Any) -> Any:
    """Coefficients of ``b + a·z``, centred."""
    p = table.prime
    points = (a.astype(np.uint64) * z + b) % np.uint64(p)
    values = reference.intt(points.astype(np.uint32), table).astype(np.int64)
    return np.where(values > p // 2, values - p, values)


def z_points(key: OuterKey, params: Params) -> Any:
    """``z`` as points of all three primes, from the two that a key shows."""
    ring = ring_of(params)
    z = reference.intt(key.points[0], ring.tables[0]).astype(np.int64)
    z[z > 1] -= params.moduli[0]
    assert set(z.tolist()) == {-1, 0, 1}
    return z, [reference.ntt((z % p).astype(np.uint32), table) for p, table in zip(params.moduli, ring.tables, strict=True)]


@pytest.mark.parametrize("name", SETS)
def test_galois_keys_hide_the_moved_secret_under_small_errors(name: str) -> None:
    """Error variance over all keys (11,264 samples at least) within 10 % of σ² + 1/12, and the same error in each prime."""
    params = SETS[name]
    ring, key = ring_of(params), OuterKey(params, cpu, SecretRng.insecure_for_tests(4))
    halves = public.key_halves(SEED, params)
    keys = key.galois_keys(halves)
    z, points = z_points(key, params)
    errors = []
    for k, power in enumerate(params.automorphisms):
        moved = np.zeros(params.N, dtype=np.int64)
        for j, value in enumerate(z):
            place = j * power % (2 * params.N)
            moved[place % params.N] += value if place < params.N else -value
        for digit in range(2):
            seen = []
            for i, p in enumerate(params.moduli):
                held = phase(halves[k, digit, i], keys[k, digit, i], points[i], ring.tables[i])
                message = params.special_prime * moved % p if i == digit else 0
                seen.append((held - message + p // 2) % p - p // 2)
            np.testing.assert_array_equal(seen[0], seen[1])
            np.testing.assert_array_equal(seen[0], seen[2])
            errors.append(seen[0])
    every = np.stack(errors)
    assert every.var() == pytest.approx(params.spec.outer_sigma**2 + 1 / 12, rel=0.1)
    assert len({row.tobytes() for row in every}) == len(every)


@pytest.mark.parametrize("name", SETS)
def test_a_mask_is_encrypted_where_the_expansion_expects_it(name: str) -> None:
    params = SETS[name]
    ring, rng = ring_of(params), SecretRng.insecure_for_tests(5)
    key, secret = OuterKey(params, cpu, rng), inner_secret(rng, params)
    a = public.mask_half(SEED, params, 1)
    b = key.encrypt_mask(1, a, secret)
    _, points = z_points(key, params)
    errors = []
    for i, p in enumerate(params.outer_primes):
        scale = params.scale * pow(2, -(params.levels + params.spec.skipped_levels), p)
        expected = np.zeros(params.N, dtype=np.int64)
        for place, value in enumerate(secret.tolist()):
            i_leaf, j = divmod(place, params.fold)
            expected[i_leaf + j * params.N // params.fold] = value * scale % p
        errors.append((phase(a[i], b[i], points[i], ring.tables[i]) - expected + p // 2) % p - p // 2)
    np.testing.assert_array_equal(errors[0], errors[1])
    assert abs(errors[0]).max() < 8 * params.spec.outer_sigma
    assert errors[0].any()


def test_a_set_encrypts_once(tiny_key: OuterKey) -> None:
    """Rule 2: under one z, a second encryption with the same public half would show the difference."""
    params = SETS["tiny"]
    half, secret = public.mask_half(SEED, params, 0), np.ones(params.n, dtype=np.int8)
    tiny_key.encrypt_mask(0, half, secret)
    for index in (0, -1, params.masks_per_epoch):
        with pytest.raises(RuntimeError, match=f"set {index} of this epoch was used, or is not one of 4"):
            tiny_key.encrypt_mask(index, half, secret)
    for index in range(1, params.masks_per_epoch):
        tiny_key.encrypt_mask(index, public.mask_half(SEED, params, index), secret)


def test_keys_and_encryptions_are_fresh() -> None:
    params, rng = SETS["tiny"], SecretRng()
    first, second = (OuterKey(params, cpu, rng) for _ in range(2))
    assert (first.points != second.points).any()
    half, secret = public.mask_half(SEED, params, 0), np.zeros(params.n, dtype=np.int8)
    assert (first.encrypt_mask(0, half, secret) != second.encrypt_mask(0, half, secret)).mean() > 0.99
    assert inner_secret(rng, params).tobytes() != inner_secret(rng, params).tobytes()


def test_a_key_shows_nothing_and_stays_where_it_is(tiny_key: OuterKey) -> None:
    assert repr(tiny_key) == str(tiny_key) == "<OuterKey>"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            leave(tiny_key)


def test_inner_secrets_are_ternary() -> None:
    secret = inner_secret(SecretRng(), SETS["default"])
    assert secret.shape == (1024,)
    assert set(secret.tolist()) == {-1, 0, 1}


def test_secret_points_are_the_transform() -> None:
    params = SETS["tiny"]
    ring, secret = ring_of(params), inner_secret(SecretRng.insecure_for_tests(1), params)
    points = secret_points(secret, cpu, ring)
    for i, p in enumerate(params.outer_primes):
        expected = reference.ntt((secret.astype(np.int64) % p).astype(np.uint32), ring.inner_tables[i])
        np.testing.assert_array_equal(points[i], expected)
