"""A worked vector of docs/protocol.md, section 8.4: the same digests mean the same protocol."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from veil.crypto import public
from veil.kernels.backend import kernels_for
from veil.kernels.interface import Rows, Scaling
from veil.kernels.ring import ring_of
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed

WIDTH, SLOTS, BITS = 50, 40, (20, 12)
DIGESTS = {
    "inner polynomials": "d1f854d7f92b0765d36946abf2bafb43",
    "outer polynomials": "81d79aa03268b1b8fb5fa5b8c216a925",
    "hint": "e8122552e74dedcc039f2c55dcf361f4",
    "public shares": "3c48443bb3c606bb3df6f2e620b57b76",
    "upload": "7c4353b9726e5fff87b7c364bc512271",
    "server's shares": "377d7b3c8d3256b225584223cfc1be4b",
    "row": "a0c54189e73aad726181c4661d69da89",
    "reply": "cf7a3f81dfb8e2270dbeac584b652a9b",
}


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_the_worked_vector(device: str) -> None:
    """Every stage of one row, from fixed seeds, at the smallest set."""
    params, kernels, seed = Params.insecure_tiny(), kernels_for(device), PublicSeed(bytes(range(32)))
    ring, rng = ring_of(params), SecretRng.insecure_for_tests(7)
    weights = (np.arange(SLOTS * WIDTH).reshape(SLOTS, WIDTH) * 37 % 255 - 127).astype(np.int8)
    inner, outer = public.inner_polynomials(seed, params, 0, WIDTH), public.outer_polynomials(seed, params)
    hint_rows = kernels.inner_hint(weights, inner, ring)
    hint = kernels.new_hint(params.blocks(SLOTS), ring)
    kernels.fill_hint(hint, 0, hint_rows, ring)
    table = kernels.prepare(hint, outer[None], ring.public_bits, ring)[0]
    secret, z = rng.ternary(params.n).reshape(1, params.k, params.m), rng.ternary(params.N)[None]
    (upload,) = kernels.encrypt_batches(outer, z, secret, kernels.errors(rng, 3.2).draw(1, params.terms, params.N), ring)
    shares = kernels.prepare(hint, kernels.decode_batches(upload[None], ring), 32, ring)[0]
    errors = kernels.errors(rng, 3.2).draw(params.T, len(inner) * params.r)
    (pads,) = kernels.pads(kernels.load_inner(inner, ring), secret, [errors], ring)
    x = np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)[None]
    ones = np.ones(SLOTS, dtype=np.float32)
    scaling = Scaling(None, ones, 0 * ones, 2.0**16, 0.25)  # a fixed scale: a norm's last bit depends on the order of a sum
    row, _ = kernels.encrypt(x, scaling, [Rows(pads, 3, 1)], 0, BITS[0])
    reply = kernels.answer(row, weights, [Rows(shares, 3, 1)], 0, BITS)
    made = {
        "inner polynomials": inner,
        "outer polynomials": outer,
        "hint": hint_rows,
        "public shares": table,
        "upload": upload,
        "server's shares": shares,
        "row": row,
        "reply": reply,
    }
    digests = {name: hashlib.sha256(np.ascontiguousarray(part).tobytes()) for name, part in made.items()}
    assert {name: state.hexdigest()[:32] for name, state in digests.items()} == DIGESTS
