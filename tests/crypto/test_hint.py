"""The server's half gives, bit for bit, what the scheme gives that is written out a second time with Python's integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.crypto import public
from veil.crypto.batch import BatchMaker
from veil.crypto.hint import HintRows, ServerHint, hint_bytes, share_bytes
from veil.kernels import reference
from veil.kernels.backend import kernels_for
from veil.kernels.ring import FRACTION_BITS, ring_of
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed

SEED = PublicSeed(bytes(range(1, 33)))
SETS = {
    "tiny": Params.insecure_tiny(outer_degree=64),
    "one ring, two rows": Params.insecure_tiny(outer_degree=64, inner_rank=1, batch_rows=2),
    "a row an input": Params.insecure_tiny(outer_degree=64, inner_rank=2, batch_rows=32),
    "few bits": Params.insecure_tiny(outer_degree=64, hint_bits=12, public_bits=12),
}


class Plain:
    """The scheme in lists of Python integers: whole polynomials modulo Q, schoolbook products, no transform."""

    def __init__(self, params: Params, weights: list[Any]) -> None:
        self.params, self.ring, self.Q = params, ring_of(params), params.outer_modulus
        self.rows = np.concatenate([self.inner_hint(group, own) for group, own in enumerate(weights)])

    def inner_hint(self, group: int, weights: Any) -> Any:
        """``round(h_j/2^(32-ℓ_h))``, h_j = Σ_{c,v} W[j, c·r+v]·Y^(-v)·a_c, for each rank: [slots, k, m]."""
        params, bits = self.params, self.params.spec.hint_bits
        a = public.inner_polynomials(SEED, params, group, weights.shape[1]).astype(object)
        total = np.zeros((len(weights), params.k, params.m), dtype=object)
        for place in range(weights.shape[1]):
            c, v = divmod(place, params.r)
            turned = np.concatenate([a[c][:, v:], -a[c][:, :v]], axis=1)  # Y^(-v)·a_c
            total += weights[:, place].astype(object)[:, None, None] * turned[None]
        rounded = (total % 2**32 + (1 << (31 - bits))) // (1 << (32 - bits)) % 2**bits
        return (rounded + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)

    def block(self, first: int) -> list[Any]:
        """``G_{β,v} = Σ_j X^j·g_{βw+j,v}(X^w)``, with g_0 = h_0 and g_v = Z·h_{r-v}: k·r polynomials of degree N."""
        params, made = self.params, []
        for i in range(params.k):
            for v in range(params.r):
                out = np.zeros(params.N, dtype=object)
                for j, row in enumerate(self.rows[first : first + params.w]):
                    parts = row[i].reshape(params.T, params.r)  # coefficient t·r + u belongs to part u
                    part = parts[:, 0] if v == 0 else parts[:, params.r - v]
                    if v:
                        part = np.concatenate([-part[-1:], part[:-1]])
                    out[j :: params.w] = part
                made.append(out)
        return made

    def coefficients(self, points: Any) -> Any:
        """Points [2, N] → coefficients modulo Q."""
        total: Any = 0
        for i, p in enumerate(self.params.outer_primes):
            values = reference.intt(points[i], self.ring.outer[i]).astype(object)
            total = total + values * (self.Q // p * pow(self.Q // p, -1, p))
        return total % self.Q

    def product(self, first: int, points: Any) -> Any:
        """Σ_v G_{β,v}·b_v of the block that begins at slot ``first`` [N], modulo Q."""
        total: Any = 0
        for own, ciphertext in zip(self.block(first), points, strict=True):
            full = np.convolve(own, self.coefficients(ciphertext))
            folded = full[: self.params.N].copy()
            folded[: self.params.N - 1] -= full[self.params.N :]
            total = total + folded
        return total % self.Q

    def switched(self, values: Any, bits: int) -> Any:
        """``round(x·2^bits/Q)`` by the 54-bit fractions that define it."""
        total: Any = 0
        for p in self.params.outer_primes:
            total = total + values % p * pow(self.Q // p, -1, p) % p * (2**FRACTION_BITS // p)
        return (total + (1 << (FRACTION_BITS - 1 - bits))) // (1 << (FRACTION_BITS - bits)) % 2**bits

    def table(self, points: Any, bits: int) -> Any:
        """All blocks' results [T, blocks·w]."""
        params = self.params
        blocks = [
            self.switched(self.product(first, points), bits).reshape(params.T, params.w)
            for first in range(0, len(self.rows), params.w)
        ]
        return np.concatenate(blocks, axis=1).astype(np.int64)


@pytest.fixture(params=["cpu", "reference"])
def kernels(request: pytest.FixtureRequest) -> Any:
    return kernels_for(request.param)


@pytest.mark.parametrize("name", SETS)
def test_the_hint_is_the_scheme_bit_for_bit(name: str, kernels: Any) -> None:
    params, draw = SETS[name], np.random.default_rng(2)
    slots = params.w + 3
    weights = [draw.integers(-128, 128, (5, params.r * 2 + 1), np.int8), draw.integers(-128, 128, (slots - 5, 7), np.int8)]
    parts = [HintRows(group, own) for group, own in enumerate(weights)]
    hint = ServerHint.build(params, SEED, {"body": parts}, kernels)
    tables = hint.public_tables(SEED, params)
    widths = [own.shape[1] for own in weights]
    rng = SecretRng.insecure_for_tests(2)
    maker = BatchMaker(params, SEED, widths, {"body": slots}, tables, kernels, rng)
    uploads, _ = maker.make(range(2), ["body"])
    points = kernels.decode_batches(uploads, ring_of(params))
    shares = hint.prepare(points, ["body"])["body"]
    whole = Plain(params, weights)
    assert shares.shape == (2, params.T, params.blocks(slots) * params.w)
    outer = public.outer_polynomials(SEED, params)
    np.testing.assert_array_equal(tables["body"], whole.table(outer, params.spec.public_bits))
    for number in range(2):
        np.testing.assert_array_equal(shares[number], whole.table(points[number], 32))


def test_together_give_what_alone_give(tiny_scheme: Any) -> None:
    """A server prepares the batches of many clients in one pass."""
    for number in range(tiny_scheme.count):
        alone = tiny_scheme.hint.prepare(tiny_scheme.points[number : number + 1], ["body"])["body"]
        np.testing.assert_array_equal(alone[0], tiny_scheme.h[number])
    order = [2, 0, 3, 1, 2]
    again = tiny_scheme.hint.prepare(tiny_scheme.points[order], ["body"])["body"]
    np.testing.assert_array_equal(again, tiny_scheme.h[order])


def test_segments_are_prepared_alone_and_together(kernels: Any) -> None:
    """Each segment's shares are the same whatever else is asked for; groups straddle the pieces that are built."""
    params, draw = Params.insecure_tiny(), np.random.default_rng(11)
    sizes = {"body": [2000, 300], "head": [16], "tail": [3]}
    rows: dict[str, Any] = {}
    group = 0
    for name, counts in sizes.items():
        rows[name] = []
        for count in counts:
            rows[name].append(HintRows(group, draw.integers(-127, 128, (count, 20), np.int8)))
            group += 1
    if kernels.name == "reference":
        rows["body"][0] = HintRows(0, rows["body"][0].weights[:100])
    stages: list[tuple[str, int, int]] = []
    hint = ServerHint.build(params, SEED, rows, kernels, lambda *stage: stages.append(stage))
    tables = hint.public_tables(SEED, params)
    for name, parts in rows.items():
        slots = sum(len(part.weights) for part in parts)
        assert hint.slots(name) == slots
        assert tables[name].shape == (params.T, params.blocks(slots) * params.w)
        assert (f"hint of the {name}", slots, slots) in stages
    assert all(0 <= done <= total for _, done, total in stages)
    draws = [draw.integers(0, p, (3, params.terms, 1, params.N), dtype=np.uint32) for p in params.outer_primes]
    points = np.concatenate(draws, axis=2)
    together = hint.prepare(points, list(rows))
    for name, parts in rows.items():
        alone = ServerHint.build(params, SEED, {name: parts}, kernels)
        np.testing.assert_array_equal(alone.public_tables(SEED, params)[name], tables[name])
        np.testing.assert_array_equal(alone.prepare(points, [name])[name], together[name])
        assert set(hint.prepare(points, [name])) == {name}


def test_a_hint_comes_back_from_its_arrays(tiny_scheme: Any) -> None:
    """As from a file: the arrays may not be written to."""
    hint, slots = tiny_scheme.hint, {"body": sum(tiny_scheme.rows)}
    arrays = hint.arrays()
    for own in arrays["body"].values():
        own.setflags(write=False)
    back = ServerHint.from_arrays(tiny_scheme.params, tiny_scheme.kernels, arrays, slots)
    assert back.slots("body") == slots["body"]
    np.testing.assert_array_equal(back.prepare(tiny_scheme.points, ["body"])["body"], tiny_scheme.h)


@pytest.mark.parametrize("slots", [[1], [256], [257, 20], [16 * 16 + 1]])
def test_memory_is_known_before_it_is_allocated(slots: list[int]) -> None:
    params = Params.insecure_tiny()
    segments = {str(place): [HintRows(place, np.ones((count, 5), dtype=np.int8))] for place, count in enumerate(slots)}
    hint = ServerHint.build(params, SEED, segments, kernels_for("cpu"))
    assert hint.nbytes == hint_bytes(params, slots)


def test_memory_of_the_default_set_is_that_of_the_protocol() -> None:
    """9 kB a slot of G: 24 products of 2 primes, 3 bytes, a coefficient; 256 bytes of shares a slot and batch."""
    params = Params.default()
    assert hint_bytes(params, [512 * 100]) == 512 * 100 * 24 * 2 * 64 * 3 == 51_200 * 9216
    assert hint_bytes(params, [1]) == hint_bytes(params, [512])
    assert hint_bytes(params, [1, 1]) == 2 * hint_bytes(params, [512])
    assert share_bytes(params, 32) == 4 * 64 * 32
    assert share_bytes(params, 33) == 4 * 64 * 64
