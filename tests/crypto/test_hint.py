"""The split into a public ``a`` side and a ``b`` side for each mask gives, bit for bit, what whole ciphertexts give.

`Unsplit` is the scheme written out a second time, plainly: ciphertexts are pairs (a modulo Q, b modulo Q·P scaled by P),
polynomials are lists of Python integers, every product is the schoolbook one. It shares the keys and the weights with
the code under test and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from veil.crypto import public
from veil.crypto.hint import Hint, HintRows, MaskHalf, hint_bytes, prepare_keys
from veil.crypto.secret import OuterKey, inner_secret
from veil.kernels import cpu, reference
from veil.kernels.ring import ring_of
from veil.params import Params, Spec
from veil.random import SecretRng
from veil.seed import PublicSeed

SEED = PublicSeed(bytes(range(1, 33)))
SETS = {
    "64-64": Params.insecure(Spec(inner_degree=64, outer_degree=64, masks_per_epoch=2)),
    "64-64-unfolded": Params.insecure(Spec(inner_degree=64, outer_degree=64, masks_per_epoch=2, skipped_levels=0)),
    "64-64-small-primes": Params.insecure(
        Spec(
            inner_degree=64,
            outer_degree=64,
            masks_per_epoch=2,
            outer_prime_bits=(24, 26),
            special_prime_bits=27,
            skipped_levels=3,
            result_bits=16,
        )
    ),
    "64-256": Params.insecure_tiny(masks_per_epoch=2),
}

Poly = Any
Pair = tuple[Poly, Poly]


class Unsplit:
    """Expansion, product and combination of whole ciphertexts."""

    def __init__(self, params: Params, key_a: Any, key_b: Any) -> None:
        self.params, self.ring = params, ring_of(params)
        self.Q, self.P = params.outer_modulus, params.special_prime
        self.QP = self.Q * self.P
        self.keys = {
            power: [(self.coefficients(key_a[k, j]), self.coefficients(key_b[k, j])) for j in range(2)]
            for k, power in enumerate(params.automorphisms)
        }

    def coefficients(self, points: Any) -> Poly:
        """Points [primes, N] → coefficients below the product of the primes."""
        whole, total = math.prod(self.params.moduli[: len(points)]), 0
        for i, row in enumerate(points):
            p = self.params.moduli[i]
            total = total + reference.intt(row, self.ring.tables[i]).astype(object) * (whole // p * pow(whole // p, -1, p))
        return total % whole

    def times(self, left: Poly, right: Poly) -> Poly:
        full = np.convolve(left, right)
        out = full[: self.params.N].copy()
        out[: self.params.N - 1] -= full[self.params.N :]
        return out

    def move(self, f: Poly, power: int) -> Poly:
        """``f(X^power)``."""
        N = self.params.N
        out = np.zeros(N, dtype=object)
        for j, value in enumerate(f):
            place = j * power % (2 * N)
            out[place % N] += value if place < N else -value
        return out

    def shift(self, f: Poly, power: int) -> Poly:
        """``f·X^power``."""
        monomial = np.zeros(self.params.N, dtype=object)
        power %= 2 * self.params.N
        monomial[power % self.params.N] = 1 if power < self.params.N else -1
        return self.times(f, monomial)

    def key_switch(self, a: Poly, power: int) -> Pair:
        """What replaces a under τ(z) by a ciphertext under z, both parts modulo Q·P."""
        new_a: Poly = 0
        new_b: Poly = 0
        for p, (key_a, key_b) in zip(self.params.outer_primes, self.keys[power], strict=True):
            digit = (a + p // 2) % p - p // 2
            new_a, new_b = new_a + self.times(digit, key_a), new_b + self.times(digit, key_b)
        return new_a % self.QP, new_b % self.QP

    def divide(self, f: Poly) -> Poly:
        """``round(f/P)`` modulo Q."""
        return (f + self.P // 2) // self.P % self.Q

    def expand(self, a: Poly, b: Poly) -> list[Pair]:
        nodes = [(a, b * self.P % self.QP)]
        for level in range(self.params.levels):
            power = self.params.N // 2**level + 1
            plus, minus = [], []
            for node_a, node_b in nodes:
                new_a, new_b = self.key_switch(self.move(node_a, power) % self.Q, power)
                new_a, new_b = self.divide(new_a), self.move(node_b, power) + new_b
                plus.append(((node_a + new_a) % self.Q, (node_b + new_b) % self.QP))
                down = -(2**level)
                minus.append((self.shift(node_a - new_a, down) % self.Q, self.shift(node_b - new_b, down) % self.QP))
            nodes = plus + minus
        return [(node_a, self.divide(node_b)) for node_a, node_b in nodes]

    def evaluate(self, leaves: list[Pair], block: Any) -> Pair:
        """D of one block: H' [slots, n] times the encrypted secret, modulo Q·P."""
        N, fold = self.params.N, self.params.fold
        columns = np.zeros((self.params.n, N), dtype=object)
        columns[:, : len(block)] = block.T
        total: list[Poly] = [0, 0]
        for r in range(fold):
            back = pow(2 * r + 1, -1, 2 * N)
            part: list[Poly] = [0, 0]
            for i, leaf in enumerate(leaves):
                hint: Poly = 0
                for j in range(fold):
                    hint = hint + self.shift(self.move(columns[i * fold + j], back), -j * N // fold)
                part = [(part[side] + self.times(hint, leaf[side])) % self.Q for side in range(2)]
            if r == 0:
                total = [self.P * part[0], self.P * part[1]]
                continue
            new_a, new_b = self.key_switch(self.move(part[0], 2 * r + 1) % self.Q, 2 * r + 1)
            total = [total[0] + new_a, total[1] + self.P * self.move(part[1], 2 * r + 1) + new_b]
        return total[0] % self.QP, total[1] % self.QP

    def scale(self, f: Poly, bits: int) -> Any:
        """``round(f·2^bits/(Q·P))`` with the 64-bit fractions that define the modulus switch."""
        total: Poly = 0
        for p in self.params.moduli:
            total = total + f % p * pow(self.QP // p, -1, p) % p * (2**64 // p)
        return ((total + (1 << (63 - bits))) % 2**64 >> (64 - bits)).astype(np.uint32)


def rounded_inner_products(params: Params, weights: list[Any]) -> Any:
    """H' of all rows of groups 0, 1, …, from the negacyclic matrices written out."""
    n, bits, rows = params.n, params.spec.result_bits, []
    for group, matrix in enumerate(weights):
        a = public.inner_polynomials(SEED, params, group, matrix.shape[1])
        stacked = np.zeros((len(a) * n, n), dtype=object)
        for c, polynomial in enumerate(a):
            for i in range(n):
                column = np.roll(polynomial.astype(object), i)
                column[:i] *= -1
                stacked[c * n : (c + 1) * n, i] = column
        rows.append(matrix.astype(object) @ stacked[: matrix.shape[1]])
    exact = np.concatenate(rows) % 2**32
    rounded = ((exact + (1 << (31 - bits))) >> (32 - bits)) % 2**bits
    return (rounded + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


@pytest.mark.parametrize("name", SETS)
def test_the_split_scheme_is_the_whole_scheme_bit_for_bit(name: str) -> None:
    params = SETS[name]
    draw, rng = np.random.default_rng(2), SecretRng.insecure_for_tests(2)
    rows = (params.N - 9, 12) if params.N > 64 else (30, 71)
    weights = [draw.integers(-128, 128, (rows[0], 67), np.int8), draw.integers(-128, 128, (rows[1], 64), np.int8)]
    parts = [HintRows(group, matrix) for group, matrix in enumerate(weights)]
    hint, tables = Hint.build(params, SEED, {"body": parts}, cpu)

    key = OuterKey(params, cpu, rng)
    key_a = public.key_halves(SEED, params)
    key_b = key.galois_keys(key_a)
    prepared = prepare_keys(key_b, params, cpu)
    mask_a = [public.mask_half(SEED, params, m) for m in range(2)]
    mask_b = [key.encrypt_mask(m, mask_a[m], inner_secret(rng, params)) for m in range(2)]
    shares = hint.prepare([MaskHalf(m, mask_b[m], prepared) for m in (1, 0)], ["body"])["body"][::-1]

    whole = Unsplit(params, key_a, key_b)
    matrix = rounded_inner_products(params, weights)
    assert shares.shape == (2, len(matrix)) and params.blocks(len(matrix)) == 2
    for m in range(2):
        leaves = whole.expand(whole.coefficients(mask_a[m]), whole.coefficients(mask_b[m]))
        for block in range(2):
            first = block * params.N
            a, b = whole.evaluate(leaves, matrix[first : first + params.N])
            np.testing.assert_array_equal(
                tables["body"][m, first : first + params.N], whole.scale(a, params.spec.public_mask_bits)
            )
            share = shares[m, first : first + params.N]
            np.testing.assert_array_equal(share, whole.scale(b, 32)[: len(share)])


def test_a_batch_gives_what_single_masks_give(tiny_scheme: Any) -> None:
    scheme = tiny_scheme
    keys = prepare_keys(scheme.keys, scheme.params, cpu)
    for m in range(scheme.count):
        alone = scheme.hint.prepare([MaskHalf(m, scheme.encrypted[m], keys)], ["body"])["body"]
        np.testing.assert_array_equal(alone[0], scheme.h[m])


def test_masks_of_two_epochs_share_a_batch(tiny_scheme: Any) -> None:
    """A server prepares masks of many clients at once: each with its own keys, even for the same set."""
    scheme = tiny_scheme
    other = OuterKey(scheme.params, cpu, SecretRng.insecure_for_tests(8))
    keys = [prepare_keys(scheme.keys, scheme.params, cpu)]
    keys.append(prepare_keys(other.galois_keys(scheme.key_halves), scheme.params, cpu))
    halves = [scheme.encrypted[0], other.encrypt_mask(0, scheme.mask_halves[0], scheme.secrets[1])]
    masks = [MaskHalf(0, half, key) for half, key in zip(halves, keys, strict=True)]
    both = scheme.hint.prepare(masks, ["body"])["body"]
    np.testing.assert_array_equal(both[0], scheme.h[0])
    np.testing.assert_array_equal(both[1], scheme.hint.prepare(masks[1:], ["body"])["body"][0])
    assert (both[0] != both[1]).mean() > 0.99


def test_segments_are_prepared_separately() -> None:
    params, draw = Params.insecure_tiny(masks_per_epoch=1), np.random.default_rng(4)
    weights = [draw.integers(-127, 128, (20, 30), np.int8), draw.integers(-127, 128, (300, 30), np.int8)]
    segments = {"body": [HintRows(0, weights[0])], "head": [HintRows(1, weights[1])]}
    stages: list[tuple[str, int, int]] = []
    hint, tables = Hint.build(params, SEED, segments, cpu, lambda *stage: stages.append(stage))
    assert (hint.slots("body"), hint.slots("head")) == (20, 300)
    assert {name: table.shape for name, table in tables.items()} == {"body": (1, 256), "head": (1, 512)}
    assert stages and all(0 <= done <= total for _, done, total in stages)
    key = OuterKey(params, cpu, SecretRng.insecure_for_tests(1))
    keys = prepare_keys(key.galois_keys(public.key_halves(SEED, params)), params, cpu)
    mask = MaskHalf(0, key.encrypt_mask(0, public.mask_half(SEED, params, 0), np.ones(params.n, np.int8)), keys)
    both, body = hint.prepare([mask], ["body", "head"]), hint.prepare([mask], ["body"])
    assert set(body) == {"body"}
    np.testing.assert_array_equal(both["body"], body["body"])
    assert both["head"].shape == (1, 300)
    nothing = hint.prepare([], ["body", "head"])
    assert {name: share.shape for name, share in nothing.items()} == {"body": (0, 20), "head": (0, 300)}


@pytest.mark.parametrize("slots", [[1], [256], [257, 20]])
def test_memory_is_known_before_it_is_allocated(slots: list[int]) -> None:
    params = Params.insecure_tiny()
    segments = {str(place): [HintRows(place, np.ones((count, 5), dtype=np.int8))] for place, count in enumerate(slots)}
    hint, _ = Hint.build(params, SEED, segments, cpu)
    assert hint.nbytes == hint_bytes(params, slots)


def test_memory_of_the_default_set_is_that_of_the_protocol() -> None:
    """GPT-2 124M: Ĥ 8 kB a slot, digits 98 kB a set and key switch."""
    params, slots = Params.default(), [133_201 - 50_257, 50_257]
    blocks = sum(params.blocks(count) for count in slots)
    assert hint_bytes(params, slots) == 8192 * 4096 * blocks + 98_304 * 16 * (255 + 3 * blocks)


def test_the_cpu_and_the_reference_build_one_hint() -> None:
    params, draw = Params.insecure_tiny(masks_per_epoch=1), np.random.default_rng(6)
    segments = {"body": [HintRows(0, draw.integers(-128, 128, (70, 70), np.int8))]}
    (left, table), (right, expected) = (Hint.build(params, SEED, segments, kernels) for kernels in (cpu, reference))
    np.testing.assert_array_equal(table["body"], expected["body"])
    key = OuterKey(params, cpu, SecretRng.insecure_for_tests(1))
    halves = key.galois_keys(public.key_halves(SEED, params))
    half = key.encrypt_mask(0, public.mask_half(SEED, params, 0), np.ones(params.n, np.int8))
    shares = [
        hint.prepare([MaskHalf(0, half, prepare_keys(halves, params, kernels))], ["body"])["body"]
        for hint, kernels in ((left, cpu), (right, reference))
    ]
    np.testing.assert_array_equal(*shares)


def test_segments_are_prepared_alone_and_together() -> None:
    """Each segment's shares are the same whatever else is asked for, with a segment of no rows between two others."""
    params, draw = SETS["64-64"], np.random.default_rng(11)
    sizes = {"body": 70, "none": 0, "head": 64, "tail": 3}
    rows = {n: [HintRows(i, draw.integers(-127, 128, (c, 64), np.int8))] for i, (n, c) in enumerate(sizes.items())}
    hint, tables = Hint.build(params, SEED, rows, cpu)
    assert {name: table.shape[1] for name, table in tables.items()} == {"body": 128, "none": 0, "head": 64, "tail": 64}
    alone = {name: Hint.build(params, SEED, {name: part}, cpu) for name, part in rows.items()}
    key = OuterKey(params, cpu, SecretRng.insecure_for_tests(1))
    keys = prepare_keys(key.galois_keys(public.key_halves(SEED, params)), params, cpu)
    secret = np.ones(params.n, np.int8)
    masks = [MaskHalf(m, key.encrypt_mask(m, public.mask_half(SEED, params, m), secret), keys) for m in range(2)]
    for names in (["body"], ["head"], ["none"], ["tail", "body"], ["head", "body"], ["tail", "head"], list(sizes)):
        made = hint.prepare(masks, names)
        assert set(made) == set(names)
        for name in names:
            own, table = alone[name]
            np.testing.assert_array_equal(made[name], own.prepare(masks, [name])[name])
            np.testing.assert_array_equal(tables[name], table[name])
            assert made[name].shape == (2, sizes[name])
