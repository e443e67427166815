"""The wire's packed polynomials: pinned byte for byte, and strict about lengths and ranges."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import WireError
from veil.kernels import cpu, reference
from veil.params import Params, packed_bytes
from veil.wire import codec

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text())
SETS = {"tiny": Params.insecure_tiny(), "default": Params.default()}
TINY = SETS["tiny"]


def counting(params: Params, *shape: int, primes: int) -> Any:
    """Residues [*shape, primes, N] that follow a plain rule, with 0 and p - 1 among them."""
    count = int(np.prod(shape)) * params.N
    steps = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    parts = []
    for p in params.moduli[:primes]:
        part = (steps % np.uint64(p)).astype(np.uint32)
        part[1] = p - 1
        parts.append(part.reshape(*shape, params.N))
    return np.stack(parts, axis=-2)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kernels", [cpu, reference], ids=["cpu", "reference"])
def test_bytes_on_the_wire_are_pinned(name: str, kernels: Any) -> None:
    params = SETS[name]
    keys = codec.encode_keys(counting(params, len(params.automorphisms), 2, primes=3), params, kernels)
    mask = codec.encode_mask(counting(params, primes=2), params, kernels)
    words = (np.arange(2 * 70, dtype=np.uint32) * np.uint32(2654435761)).reshape(2, 70)
    rows = {bits: kernels.pack(words >> np.uint32(32 - bits), bits).tobytes() for bits in (18, 20, 24)}
    assert {
        "keys": hashlib.sha256(keys).hexdigest(),
        "mask": hashlib.sha256(mask).hexdigest(),
        "rows": {str(bits): data.hex() for bits, data in rows.items()},
    } == VECTORS[name]
    assert len(keys) == params.epoch_key_bytes
    assert len(mask) == params.mask_bytes


@pytest.mark.parametrize("name", SETS)
def test_decoding_undoes_encoding(name: str) -> None:
    params = SETS[name]
    keys = counting(params, len(params.automorphisms), 2, primes=3)
    np.testing.assert_array_equal(codec.decode_keys(codec.encode_keys(keys, params, cpu), params, cpu), keys)
    mask = counting(params, primes=2)
    np.testing.assert_array_equal(codec.decode_mask(codec.encode_mask(mask, params, cpu), params, cpu), mask)


@given(st.integers(0, 2 * TINY.mask_bytes).filter(lambda length: length != TINY.mask_bytes))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_a_mask_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(WireError, match=f"a mask has {length} bytes, expected {TINY.mask_bytes}"):
        codec.decode_mask(bytes(length), TINY, cpu)


@pytest.mark.parametrize("length", [0, TINY.epoch_key_bytes - 1, TINY.epoch_key_bytes + 1])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(WireError, match=f"epoch keys have {length} bytes, expected {TINY.epoch_key_bytes}"):
        codec.decode_keys(bytes(length), TINY, cpu)


@pytest.mark.parametrize("prime", [0, 1, 2])
@pytest.mark.parametrize("place", [0, -1])
def test_a_coefficient_that_reaches_its_modulus_is_refused(prime: int, place: int) -> None:
    keys = counting(TINY, len(TINY.automorphisms), 2, primes=3)
    keys[place, 1, prime, place] = TINY.moduli[prime]
    with pytest.raises(WireError, match=f"not below its modulus {TINY.moduli[prime]}"):
        codec.decode_keys(codec.encode_keys(keys, TINY, cpu), TINY, cpu)
    if prime < 2:
        mask = counting(TINY, primes=2)
        mask[prime, place] = TINY.moduli[prime]
        with pytest.raises(WireError, match=f"not below its modulus {TINY.moduli[prime]}"):
            codec.decode_mask(codec.encode_mask(mask, TINY, cpu), TINY, cpu)


@given(st.integers(0, 4), st.integers(1, 100), st.integers(1, 32), st.integers(-2, 2))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_rows_are_cut_by_their_exact_length(rows: int, count: int, bits: int, more: int) -> None:
    length = rows * packed_bytes(count, bits)
    if more and length + more >= 0:
        with pytest.raises(WireError, match=f"expected {length}"):
            codec.rows_from(bytes(length + more), rows, count, bits)
    else:
        assert codec.rows_from(bytes(length), rows, count, bits).shape == (rows, packed_bytes(count, bits))


def test_packed_bytes_round_up() -> None:
    assert [packed_bytes(count, 18) for count in (0, 1, 4, 5)] == [0, 3, 9, 12]
