"""The client's half: what a batch's upload decrypts to, its pads and shares, and that each of its rows is used once."""

from __future__ import annotations

import copy
import math
import os
import pickle
import sys
from typing import Any

import numpy as np
import pytest

from veil.crypto import public
from veil.crypto.batch import BatchMaker, RowBatch
from veil.errors import RowReused
from veil.kernels import reference
from veil.random import SecretRng


@pytest.fixture(params=["tiny_scheme", "default_scheme"])
def scheme(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def centred(values: Any, modulus: int) -> Any:
    return (np.asarray(values, dtype=np.int64) + modulus // 2) % modulus - modulus // 2


def batch(rows: int = 8, groups: int = 3, number: int = 4) -> RowBatch:
    return RowBatch(number, np.zeros((rows, 1), np.uint32), {"body": np.zeros((rows, 1), np.uint32)}, groups, rows)


# What a batch holds ---------------------------------------------------------------------------------------------------


def test_uploads_hide_the_secret_under_small_errors(scheme: Any) -> None:
    """``b_v + a_v·z - Δ·s_v(X^w)`` is the same small error modulo both primes, of variance σ² + 1/12 within 5 deviations."""
    params, errors = scheme.params, []
    a = public.outer_polynomials(scheme.seed, params)
    for number in range(scheme.count):
        message = np.zeros((params.terms, params.N), dtype=np.int64)
        parts = scheme.secrets[number].reshape(params.k, params.T, params.r).transpose(0, 2, 1)
        message[:, :: params.w] = parts.reshape(params.terms, params.T)
        seen = []
        for i, table in enumerate(scheme.ring.outer):
            z = reference.residues(scheme.keys[number], table).astype(np.uint64)
            points = (scheme.points[number][:, i] + a[:, i] * z) % np.uint64(table.prime)
            held = reference.intt(points.astype(np.uint32), table).astype(np.int64)
            seen.append(centred(held - message * params.scale, table.prime))
        np.testing.assert_array_equal(*seen)
        errors.append(seen[0])
    every = np.stack(errors).astype(np.float64)
    variance = params.spec.outer_sigma**2 + 1 / 12
    assert (every**2).mean() == pytest.approx(variance, rel=5 * math.sqrt(2 / every.size))
    assert len({row.tobytes() for own in errors for row in own}) == scheme.count * params.terms


def test_pads_are_the_inner_product_plus_a_gaussian_error(scheme: Any) -> None:
    """Mean and variance within 5 standard deviations of what so many samples of variance σ² + 1/12 have."""
    errors = []
    for number, own in enumerate(scheme.batches):
        for group in range(2):
            pads = scheme.pads(own, group).astype(np.int64)
            errors.append(centred(pads - scheme.inner_product(group, number), 2**32).reshape(-1))
    every = np.concatenate(errors).astype(np.float64)
    variance = scheme.params.spec.inner_sigma**2 + 1 / 12
    assert abs(every.mean()) < 5 * math.sqrt(variance / every.size)
    assert (every**2).mean() == pytest.approx(variance, rel=5 * math.sqrt(2 / every.size))


def test_the_shares_are_the_public_table_times_z(tiny_scheme: Any, schoolbook: Any) -> None:
    """``μ = (a'·z mod 2^ℓ_a)·2^(32-ℓ_a)``, block by block."""
    params, bits = tiny_scheme.params, tiny_scheme.params.spec.public_bits
    table = tiny_scheme.tables["body"].astype(np.int64).reshape(params.T, -1, params.w)
    for number, own in enumerate(tiny_scheme.batches):
        blocks = [
            schoolbook(table[:, block].reshape(-1), tiny_scheme.keys[number]).reshape(params.T, params.w)
            for block in range(table.shape[1])
        ]
        expected = (np.concatenate(blocks, axis=1) % 2**bits << (32 - bits)).astype(np.uint32)
        np.testing.assert_array_equal(own.shares["body"], expected[:, : sum(tiny_scheme.rows)])


def test_every_batch_has_secrets_of_its_own(tiny_scheme: Any) -> None:
    """A z encrypts once, an s hides one batch: no two are alike, and neither is an s a z."""
    drawn = [values.tobytes() for values in (*tiny_scheme.secrets, *tiny_scheme.keys)]
    assert len(set(drawn)) == len(drawn) == 8
    uploads = [upload.tobytes() for upload in tiny_scheme.uploads]
    assert len(set(uploads)) == 4


def test_the_maker_forgets_the_secrets(pair: Any) -> None:
    """Nothing that stays behind holds z, or s: neither the batch nor what made it."""
    rng = SecretRng.insecure_for_tests(5)
    manifest = pair.manifest
    maker = BatchMaker(
        pair.params, pair.seed, manifest.widths, manifest.segments, pair.client_model.tables, pair.kernels, rng
    )
    _, (made,) = maker.make([0], ["body", "head"])
    again = SecretRng.insecure_for_tests(5)
    secrets = [again.ternary(count).tobytes() for count in (pair.params.n, pair.params.N)]
    for thing in (made, maker):
        for value in vars(thing).values():
            found = np.asarray(value).astype(np.int64, casting="unsafe") if isinstance(value, np.ndarray) else None
            assert found is None or not any(
                found.reshape(-1)[: len(secret)].astype(np.int8).tobytes() == secret for secret in secrets
            )


def test_a_batch_without_the_head_has_no_share_of_it(pair: Any, calls: Any) -> None:
    session = pair.session()
    session.reserve(body=1)
    (prepared,) = [call for call in calls if call.method == "prepare"]
    assert tuple(prepared.args[2]) == ("body",)
    session.close()


def test_sizes_are_known_before_a_batch_is_made(tiny_scheme: Any) -> None:
    maker, own = tiny_scheme.maker, tiny_scheme.batches[0]
    assert own.pads.shape == (tiny_scheme.params.T, maker.pad_words)
    assert maker.batch_bytes == own.pads.nbytes + own.shares["body"].nbytes
    assert [maker.group_start(group) for group in range(2)] == [0, -(-tiny_scheme.widths[0] // 4) * 4]
    assert tiny_scheme.uploads.shape == (4, tiny_scheme.params.batch_bytes)


# A row is used once ---------------------------------------------------------------------------------------------------


def test_a_group_takes_each_row_once_and_in_order() -> None:
    own = batch()
    assert [own.take(0, count) for count in (1, 3, 0, 4)] == [0, 1, 4, 4]
    with pytest.raises(RowReused, match="batch 4 has no 1 rows left for group 0; each row is used once"):
        own.take(0, 1)
    assert own.take(0, 0) == 8
    assert (own.taken(0), own.taken(1)) == (8, 0)
    assert own.take(1, 8) == 0


@pytest.mark.parametrize("count", [-1, -8, 9, 1 << 40])
def test_rows_that_a_batch_does_not_have_spend_nothing(count: int) -> None:
    own = batch()
    own.take(2, 3)
    with pytest.raises(RowReused):
        own.take(2, count)
    assert own.taken(2) == 3
    assert own.take(2, 5) == 3


def test_skipped_rows_are_spent_and_none_comes_back() -> None:
    own = batch()
    own.skip(0, 5)
    assert own.take(0, 1) == 5
    own.skip(0, 2)
    assert own.take(0, 1) == 6
    own.skip(0, 100)
    assert own.taken(0) == 8
    with pytest.raises(RowReused):
        own.take(0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_batch_stays_with_its_process() -> None:
    """Two processes would both take row 0. The child ends without returning to pytest."""
    own = batch()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"no error"
        try:
            own.take(0, 1)
        except RowReused as error:
            said = str(error).encode()
        except BaseException as error:
            said = repr(error).encode()
        os.write(writer, said)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said_by_child:
        refusal = said_by_child.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    assert refusal == "a batch of rows belongs to the process that made it; open a session after the fork"
    assert own.take(0, 1) == 0


def test_a_batch_shows_nothing_and_stays_where_it_is(tiny_scheme: Any) -> None:
    own = tiny_scheme.batches[2]
    assert repr(own) == str(own) == "<RowBatch 2>"
    assert repr(tiny_scheme.maker) == "<BatchMaker>"
    for thing in (own, tiny_scheme.maker):
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                leave(thing)
