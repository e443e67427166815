"""The client's half of a mask: ``A·s + e`` with the right error, μ as the product with z, and that it is used once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from veil.errors import MaskReused
from veil.kernels import reference


@pytest.fixture(params=["tiny_scheme", "default_scheme"])
def scheme(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def centred(values: Any) -> Any:
    """Integers modulo 2^32, as the nearest to zero."""
    return (np.asarray(values, dtype=np.int64) + 2**31) % 2**32 - 2**31


def inner_errors(scheme: Any) -> Any:
    errors = []
    for m, mask in enumerate(scheme.masks):
        for group, width in enumerate(scheme.widths):
            first = scheme.maker.group_start(group)
            rows = mask.rows[first : first + width].astype(np.int64)
            errors.append(centred(rows - scheme.inner_product(group, m)))
    return errors


def test_rows_are_the_inner_product_plus_a_gaussian_error(scheme: Any) -> None:
    """Mean within 4 standard errors, variance within 15 % of σ² (668 samples at least: 5.5 % is one sigma)."""
    errors = np.concatenate(inner_errors(scheme)).astype(np.float64)
    sigma = scheme.params.spec.inner_sigma
    assert errors.size > 600
    assert abs(errors.mean()) < 4 * sigma / np.sqrt(errors.size)
    assert errors.var() == pytest.approx(sigma**2, rel=0.15)


def test_errors_are_fresh_even_for_the_same_secret(tiny_scheme: Any) -> None:
    again = tiny_scheme.make_mask(0)
    assert (again.rows != tiny_scheme.masks[0].rows).mean() > 0.99
    np.testing.assert_array_equal(again.mu["body"], tiny_scheme.masks[0].mu["body"])


def test_mu_is_the_public_table_times_z(tiny_scheme: Any, schoolbook: Any) -> None:
    """``μ = (a'·z mod 2^k_a)·2^(32-k_a)``, block by block."""
    params, table = tiny_scheme.params, tiny_scheme.tables["body"]
    z = reference.intt(tiny_scheme.key.points[0], tiny_scheme.ring.tables[0]).astype(np.int64)
    z[z > 1] -= params.moduli[0]
    bits = params.spec.public_mask_bits
    for m, mask in enumerate(tiny_scheme.masks):
        blocks = table[m].astype(np.int64).reshape(-1, params.N)
        products = np.concatenate([schoolbook(block, z) for block in blocks]) % 2**bits
        np.testing.assert_array_equal(mask.mu["body"], (products << (32 - bits)).astype(np.uint32))


def test_a_group_is_spent_once(tiny_scheme: Any) -> None:
    mask = tiny_scheme.make_mask(1)
    mask.spend(0)
    assert mask.is_spent(0)
    assert not mask.is_spent(1)
    mask.spend(1)
    with pytest.raises(MaskReused, match="mask 1 was already used for group 0"):
        mask.spend(0)


def test_a_mask_shows_nothing_and_stays_where_it_is(tiny_scheme: Any) -> None:
    mask = tiny_scheme.masks[2]
    assert repr(mask) == str(mask) == "<ClientMask 2>"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            leave(mask)


def test_a_mask_without_the_head_has_no_share_of_it(pair: Any, calls: Any) -> None:
    session = pair.session()
    session.reserve(body=1)
    (prepared,) = [call for call in calls if call.method == "prepare"]
    assert tuple(prepared.args[3]) == ("body",)
