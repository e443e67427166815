"""Every formula of the noise module against the variance that is measured, with the real parameters on a small layer.

Seeds are fixed. A bound is five standard deviations of the measured variance, which follow from the sample size: √(2/k) of
it for k samples; where all samples of a batch share a secret of n ternary coefficients, its squared norm adds √(1/2n).
Each bound is below 15 %, so that a formula that is wrong by a factor of 0.85 fails.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil import noise
from veil.bundle.constants import row_norms, target_norm
from veil.crypto import public
from veil.kernels import reference
from veil.kernels.interface import Rows, Scaling
from veil.kernels.reference_kernels import ReferenceKernels
from veil.noise import WireBits
from veil.params import Params, Spec, packed_bytes

PARAMS = Params.default()


def centred(values: Any, modulus: int) -> Any:
    return (np.asarray(values, dtype=np.int64) + modulus // 2) % modulus - modulus // 2


def check(measured: Any, expected: float, *, secrets: tuple[int, int] = (0, 1)) -> None:
    """The variance is the predicted one within 5 deviations; ``secrets`` are ternary coefficients a batch, and batches."""
    values = np.asarray(measured, dtype=np.float64).reshape(-1)
    coefficients, batches = secrets
    # a ternary coefficient's square has mean 2/3 and variance 2/9: the norm's relative variance is 1/(2n)
    relative = 2.0 / values.size + (1.0 / (2.0 * coefficients * batches) if coefficients else 0.0)
    bound = 5.0 * math.sqrt(relative)
    assert bound < 0.13, "too few samples to tell a formula that is wrong by 0.85"
    assert (values**2).mean() == pytest.approx(expected, rel=bound)


# The terms ------------------------------------------------------------------------------------------------------------


class Inside:
    """What a scheme's numbers are exactly: H, H', the sums Σ_v G_v·a_v and Σ_v G_v·b_v, for the default set."""

    def __init__(self, scheme: Any) -> None:
        params, ring = scheme.params, scheme.ring
        self.scheme, self.params, self.ring = scheme, params, ring
        products = []
        for group, weights in enumerate(scheme.weights):
            a = public.inner_polynomials(scheme.seed, params, group, weights.shape[1])
            matrix = reference.inner_matrix(a, ring)[:, : weights.shape[1]]
            products.append(reference.matmul(weights, matrix).T)
        self.exact = np.concatenate(products)  # H [slots, n] modulo 2^32, in the order of G
        self.rounded = reference.rounded_hint(self.exact, ring)
        kernels = ReferenceKernels()
        self.hint = kernels.new_hint(params.blocks(len(self.exact)), ring)
        kernels.fill_hint(self.hint, 0, self.rounded, ring)

    def times_secret(self, hint: Any, number: int) -> Any:
        """``H·s`` of integers [slots, n] in the order of G, for one batch → [T, slots], exact."""
        params = self.params
        parts = reference.subring_parts(self.scheme.secrets[number].astype(np.int8), self.ring).astype(np.float64)
        shaped = hint.reshape(len(hint), params.terms, params.T).astype(np.float64)
        out = np.zeros((params.T, len(hint)))
        for shift in range(params.T):
            turned = np.roll(parts, shift, axis=1)
            turned[:, :shift] *= -1.0
            # coefficient `shift + u` of the product, up to its sign, takes part u of the secret: summed over what H holds
            out += np.einsum("jv,vt->tj", shaped[:, :, shift], turned)
        return out

    def phase(self, points: Any, number: int) -> Any:
        """``Σ_v G_v·b_v + (Σ_v G_v·a_v)·z`` of one batch as a fraction of Q, times 2^32 → [T, slots] float64."""
        params, ring = self.params, self.ring
        a = public.outer_polynomials(self.scheme.seed, params)
        values = []
        for i, table in enumerate(ring.outer):
            p = np.uint64(table.prime)
            hint = self.hint.points[i].astype(np.uint64)
            sums = [(hint * one[:, i].astype(np.uint64)).sum(axis=1) % p for one in (points, a)]
            z = reference.residues(self.scheme.keys[number], table).astype(np.uint64)
            values.append(reference.intt(((sums[0] + sums[1] * z) % p).astype(np.uint32), table).astype(np.int64))
        return self.rows(self.whole(values) * (2.0**32 / params.outer_modulus))

    def public_error(self, number: int) -> Any:
        """``(a' - Σ_v G_v·a_v·2^ℓ_a/Q)·2^(32-ℓ_a)`` times z, of one batch → [T, slots]."""
        params, ring = self.params, self.ring
        a, values = public.outer_polynomials(self.scheme.seed, params), []
        for i, table in enumerate(ring.outer):
            sums = (self.hint.points[i].astype(np.uint64) * a[:, i].astype(np.uint64)).sum(axis=1) % np.uint64(table.prime)
            values.append(reference.intt(sums.astype(np.uint32), table).astype(np.int64))
        exact = self.whole(values) * (2.0**params.spec.public_bits / params.outer_modulus)
        table = self.scheme.tables["body"].reshape(params.T, -1, params.w).transpose(1, 0, 2).reshape(len(exact), params.N)
        size = 2.0**params.spec.public_bits
        lost = (table - exact + size / 2) % size - size / 2
        assert abs(lost).max() < 0.5 + 1e-3
        z = self.scheme.keys[number].astype(np.float64)
        products = np.zeros(lost.shape)
        for place in np.flatnonzero(z):
            turned = np.roll(lost, place, axis=1)
            turned[:, :place] *= -1.0
            products += z[place] * turned
        return self.rows(products * 2.0 ** (32 - params.spec.public_bits))

    def whole(self, values: Any) -> Any:
        """Coefficients modulo both primes → the float nearest to the integer nearest zero modulo Q."""
        p1, p2 = self.params.outer_primes
        factor = (values[1] - values[0]) % p2 * pow(p1, -1, p2) % p2
        return centred(values[0] + p1 * factor, p1 * p2).astype(np.float64)

    def rows(self, coefficients: Any) -> Any:
        params = self.params
        return coefficients.reshape(-1, params.T, params.w).transpose(1, 0, 2).reshape(params.T, -1)[:, : len(self.exact)]


@pytest.fixture(scope="module")
def inside(default_scheme: Any) -> Inside:
    return Inside(default_scheme)


def test_the_order_of_the_hint_is_the_products(inside: Inside, default_scheme: Any) -> None:
    """``H·s`` by the order of G equals ``W·(A·s)`` by the schoolbook, modulo 2^32."""
    for group, weights in enumerate(default_scheme.weights):
        expected = default_scheme.inner_product(group, 0) @ weights.T.astype(np.int64)
        found = inside.times_secret(centred(inside.exact, 2**32), 0)[:, default_scheme.slots(group)]
        np.testing.assert_array_equal(found.astype(np.int64) % 2**32, expected % 2**32)


def test_outer_error(inside: Inside, default_scheme: Any) -> None:
    """Decrypted exactly, against ``H'·s``: 137,984 samples in four batches; z only turns the errors of b around."""
    up, errors = 2.0 ** (32 - PARAMS.spec.hint_bits), []
    for number in range(default_scheme.count):
        exact = inside.times_secret(inside.rounded, number) * up
        errors.append(inside.phase(default_scheme.points[number], number) - exact)
    measured = np.stack(errors)
    measured = (measured + 2.0**31) % 2.0**32 - 2.0**31
    check(measured, noise.outer_error(PARAMS))


def test_what_is_lost_by_rounding_the_scale_is_part_of_the_outer_error() -> None:
    """With few bits of hint Δ is large and what it loses is nothing; with many it is not."""
    for bits in (20, 24):
        params = Params.insecure(Spec(hint_bits=bits))
        lost = params.scale * 2.0**bits / params.outer_modulus - 1.0
        assert abs(lost) <= 2.0 ** (bits - 1) / params.outer_modulus * 1.0001
        hint = 4.0**bits / 12.0
        errors = params.terms * params.N * hint * 3.2**2 * (2.0**32 / params.outer_modulus) ** 2
        expected = errors + params.n * 2 / 3 * hint * (lost * 2.0 ** (32 - bits)) ** 2
        assert noise.outer_error(params) == pytest.approx(expected)


def test_hint_rounding(inside: Inside, default_scheme: Any) -> None:
    """137,984 samples in four batches, each with its secret of 1,536."""
    lost = (inside.rounded.astype(np.int64) << (32 - PARAMS.spec.hint_bits)) - centred(inside.exact, 2**32)
    lost = centred(lost, 2**32)
    assert abs(lost).max() <= 1 << (31 - PARAMS.spec.hint_bits)
    measured = [inside.times_secret(lost, number) for number in range(default_scheme.count)]
    check(measured, noise.hint_rounding(PARAMS), secrets=(PARAMS.n, default_scheme.count))


def test_public_rounding(inside: Inside, default_scheme: Any) -> None:
    """137,984 samples in four batches, each with its z of 2,048; a' is the same for all of them."""
    measured = [inside.public_error(number) for number in range(default_scheme.count)]
    check(measured, noise.public_rounding(PARAMS), secrets=(PARAMS.N, default_scheme.count))


def share_errors(scheme: Any) -> Any:
    """``h + μ - H·s`` of every row, batch and slot."""
    errors = []
    for number, batch in enumerate(scheme.batches):
        for group, weights in enumerate(scheme.weights):
            slots = scheme.slots(group)
            exact = scheme.inner_product(group, number) @ weights.T.astype(np.int64)
            total = scheme.h[number][:, slots].astype(np.int64) + batch.shares["body"][:, slots]
            errors.append(centred(total - exact, 2**32).reshape(-1))
    return np.concatenate(errors)


def test_shares(default_scheme: Any) -> None:
    """What the kernels make, 137,984 samples in four batches; no bias either."""
    measured = share_errors(default_scheme)
    check(measured, noise.shares(PARAMS), secrets=(PARAMS.n, default_scheme.count))
    assert abs(measured.mean()) < 5 * measured.std() / math.sqrt(measured.size)


def test_shares_are_the_sum_of_their_terms() -> None:
    terms = noise.outer_error(PARAMS), noise.hint_rounding(PARAMS), noise.public_rounding(PARAMS)
    assert noise.shares(PARAMS) == pytest.approx(sum(terms))
    assert max(terms) < 0.75 * sum(terms), "a test of the sum alone would not see the smaller terms"


def test_shares_of_a_tiny_set(tiny_scheme: Any) -> None:
    """The same formula at degrees 32 and 128: 34,048 samples in sixteen batches, whose secrets have 96 coefficients each."""
    scheme = type(tiny_scheme)(tiny_scheme.params, 16, tiny_scheme.rows)
    check(share_errors(scheme), noise.shares(scheme.params), secrets=(96, scheme.count))


@pytest.mark.parametrize("bits", [12, 22, 24, 27, 30, 31, 32])
def test_input_error(default_scheme: Any, bits: int) -> None:
    """Inner error and rounding of rows of zeros: 247,552 words. The error's own rounding to integers is part of it."""
    kernels, errors = default_scheme.kernels, []
    for number, batch in enumerate(default_scheme.batches):
        for group, width in enumerate(default_scheme.widths):
            zeros = np.zeros((PARAMS.T, width), dtype=np.float32)
            scaling = Scaling(None, np.ones(1, np.float32), np.zeros(1, np.float32), 1.0, 0.0)
            rows = [Rows(batch.pads, 0, PARAMS.T)]
            sent, _ = kernels.encrypt(zeros, scaling, rows, default_scheme.maker.group_start(group), bits)
            words = kernels.unpack(sent, width, bits).astype(np.int64) << (32 - bits)
            errors.append(centred(words - default_scheme.inner_product(group, number), 2**32).reshape(-1))
    check(np.concatenate(errors), noise.input_error(PARAMS, bits))


@pytest.mark.parametrize("bits", [8, 12, 16, 24])
def test_result_rounding(default_scheme: Any, bits: int) -> None:
    """Weights of zero and random shares: 200,000 uniform words."""
    kernels, count = default_scheme.kernels, 2000
    shares = np.random.default_rng(13).integers(0, 2**32, (100, count), dtype=np.uint32)
    (weights,) = kernels.load_weights([np.zeros((count, 1), np.int8)])
    data = np.zeros((100, 3), np.uint8)
    reply = kernels.answer(data, weights, [Rows(shares, 0, 100)], 0, (24, bits))
    words = kernels.unpack(reply, count, bits).astype(np.int64) << (32 - bits)
    check(centred(words + shares, 2**32), noise.rounding(bits))
    assert noise.rounding(32) == 0.0


@pytest.mark.parametrize("bits", [WireBits(22, 14), WireBits(24, 16), WireBits(27, 12)])
def test_result(default_scheme: Any, bits: WireBits) -> None:
    """Decrypted against exact integer products, each error over its prediction: 137,984 results of two groups."""
    kernels, ratios = default_scheme.kernels, []
    for group, weights in enumerate(default_scheme.weights):
        norms = row_norms(weights)
        target = target_norm(PARAMS, norms.max())
        scaling = Scaling(None, np.ones(len(weights), np.float32), np.zeros(len(weights), np.float32), target, 0.0)
        first, (loaded,) = default_scheme.maker.group_start(group), kernels.load_weights([weights])
        start = default_scheme.slots(group).start
        for number, batch in enumerate(default_scheme.batches):
            x = np.random.default_rng(number).standard_normal((PARAMS.T, weights.shape[1])).astype(np.float32)
            data, tau = kernels.encrypt(x, scaling, [Rows(batch.pads, 0, PARAMS.T)], first, bits.input)
            own = [Rows(default_scheme.h[number], 0, PARAMS.T)]
            reply = kernels.answer(data, loaded, own, start, (bits.input, bits.result))
            outputs = kernels.decrypt(reply, scaling, [Rows(batch.shares["body"], 0, PARAMS.T)], start, bits.result, tau)
            exact = np.rint(x.astype(np.float64) * tau[:, None]) @ weights.T.astype(np.float64)
            errors = outputs * tau[:, None] - exact
            ratios.append((errors / np.sqrt(noise.result(PARAMS, norms, bits))).reshape(-1))
    check(np.concatenate(ratios), 1.0, secrets=(PARAMS.n, default_scheme.count))


def test_an_error_is_the_sum_of_all() -> None:
    norms = np.array([0.0, 100.0, 3000.0])
    found = noise.result(PARAMS, norms, WireBits(23, 15))
    own = 3.2**2 + 1 / 12 + (4.0**9 + 2) / 12
    expected = norms**2 * own + noise.shares(PARAMS) + (4.0**17 + 2) / 12
    np.testing.assert_allclose(found, expected)


# The bits of the wire -------------------------------------------------------------------------------------------------

groups = st.tuples(st.integers(1, 30_000), st.integers(1, 200_000), st.floats(1.0, 127.0))
"""Width, slots, and the size of a weight of the slot of the largest norm."""
few = settings(derandomize=True, deadline=None, max_examples=200)


def reachable(params: Params, width: int, norm: float) -> float:
    """The signal to noise that all bits would give: no rounding of input or result at all."""
    floor = norm**2 * noise.inner_error(params) + noise.shares(params)
    return 10.0 * math.log10(noise.signal(params, width) / floor)


@given(groups, st.sampled_from([30.0, 40.0, 46.0, 50.0, 60.0]))
@few
def test_the_signal_is_kept_where_it_can_be(group: tuple[int, int, float], signal_db: float) -> None:
    """And where it cannot, a tenth of a decibel is lost to the bits at most."""
    width, slots, size = group
    params, norm = Params.insecure(Spec(signal_db=signal_db)), size * math.sqrt(width)
    bits = noise.wire_bits(params, width, slots, norm)
    assert bits.input in noise.INPUT_BITS and bits.result in noise.RESULT_BITS
    promised = min(signal_db, reachable(params, width, norm) - 0.1)
    assert noise.signal_to_noise_db(params, width, norm, bits) >= promised - 1e-9


@given(groups)
@few
def test_no_bits_that_keep_the_signal_cost_less(group: tuple[int, int, float]) -> None:
    """Every other choice that costs fewer bytes misses what was promised."""
    width, slots, size = group
    norm = size * math.sqrt(width)
    bits = noise.wire_bits(PARAMS, width, slots, norm)
    promised = min(PARAMS.spec.signal_db, reachable(PARAMS, width, norm) - 0.1)
    cost = packed_bytes(width, bits.input) + packed_bytes(slots, bits.result)
    for up in noise.INPUT_BITS:
        for down in noise.RESULT_BITS:
            if packed_bytes(width, up) + packed_bytes(slots, down) < cost:
                assert noise.signal_to_noise_db(PARAMS, width, norm, WireBits(up, down)) < promised + 1e-9


def test_one_bit_fewer_either_way_would_not_do() -> None:
    params = Params.insecure(Spec(signal_db=46.0))  # within reach at each of these widths
    for width, slots in ((576, 960), (4096, 6144), (14_336, 4096)):
        norm = 40.0 * math.sqrt(width)
        bits = noise.wire_bits(params, width, slots, norm)
        assert noise.signal_to_noise_db(params, width, norm, bits) >= params.spec.signal_db
        for fewer in (WireBits(bits.input - 1, bits.result), WireBits(bits.input, bits.result - 1)):
            assert noise.signal_to_noise_db(params, width, norm, fewer) < params.spec.signal_db


def test_a_wider_layer_needs_more_bits_up() -> None:
    found = [noise.wire_bits(PARAMS, width, width, 40.0 * math.sqrt(width)).input for width in (64, 576, 2048, 8192, 28_672)]
    assert found == sorted(found) and found[0] < found[-1]
    assert all(bits in noise.INPUT_BITS for bits in found)


def test_what_no_bits_can_reach_gets_nearly_all() -> None:
    """Signal to noise of 90 dB is beyond the shares' error."""
    params, norm = Params.insecure(Spec(signal_db=90.0)), 40.0 * math.sqrt(4096)
    bits = noise.wire_bits(params, 4096, 4096, norm)
    found = noise.signal_to_noise_db(params, 4096, norm, bits)
    assert reachable(params, 4096, norm) - 0.1 <= found < 90.0


@pytest.mark.parametrize("norm", [0.0, 1.0, 127.0 * math.sqrt(1 << 20)])
@pytest.mark.parametrize("slots", [1, 1 << 24])
def test_the_edges_of_the_search(norm: float, slots: int) -> None:
    """No weight, one weight, the largest layer that a manifest may have."""
    width = 1 if norm <= 1.0 else 1 << 20
    bits = noise.wire_bits(PARAMS, width, slots, norm)
    assert bits.input in noise.INPUT_BITS and bits.result in noise.RESULT_BITS


def test_noise_that_is_exactly_the_allowed_one_is_allowed() -> None:
    """At a signal to noise that some bits give exactly, they or cheaper ones are chosen; for a hair more, not they."""
    width, slots, norm = 1024, 4096, 40.0 * 32.0
    given = WireBits(24, 14)
    exact = noise.signal_to_noise_db(PARAMS, width, norm, given)
    cost = packed_bytes(width, given.input) + packed_bytes(slots, given.result)
    for more, enough in ((-1e-6, True), (1e-6, False)):
        params = Params.insecure(Spec(signal_db=exact + more))
        found = noise.wire_bits(params, width, slots, norm)
        assert (found != given) or enough
        assert noise.signal_to_noise_db(params, width, norm, found) >= exact + more - 1e-9
        assert not enough or packed_bytes(width, found.input) + packed_bytes(slots, found.result) <= cost


# The largest result ---------------------------------------------------------------------------------------------------


def test_the_largest_result_stays_clear_of_the_wrap() -> None:
    """127 in all of 28,672 inputs (the widest layer of the models named): more than 8 standard deviations of room."""
    norm = 127 * math.sqrt(28_672.0)
    bits = noise.wire_bits(PARAMS, 28_672, 8192, norm)
    expected = 0.01 * 2.0**31 / math.sqrt(noise.result(PARAMS, np.array([norm]), bits)[0])
    assert noise.wrap_margin(PARAMS, norm, bits) == pytest.approx(expected)
    assert noise.wrap_margin(PARAMS, norm, bits) > 8
