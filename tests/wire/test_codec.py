"""What goes over the wire: pinned byte for byte, and strict about lengths and ranges before anything is allocated."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import WireError
from veil.kernels.backend import kernels_for
from veil.kernels.reference import pack
from veil.kernels.ring import ring_of
from veil.params import Params, packed_bytes
from veil.wire import codec
from veil.wire.messages import Span, rows_of

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text())
SETS = {"tiny": Params.insecure_tiny(), "default": Params.default()}
TINY = SETS["tiny"]
KERNELS = [kernels_for("cpu"), kernels_for("reference")]


def counting(params: Params) -> Any:
    """Residues [terms, 2, N] that follow a plain rule, with 0 and p - 1 among them."""
    steps = np.arange(params.terms * params.N, dtype=np.uint64) * np.uint64(2654435761)
    parts = []
    for p in params.outer_primes:
        part = (steps % np.uint64(p)).astype(np.uint32)
        part[1] = p - 1
        parts.append(part.reshape(params.terms, params.N))
    return np.stack(parts, axis=1)


def packed(residues: Any, params: Params) -> Any:
    """A batch's bytes: polynomials one after the other, each from a byte's beginning."""
    return pack(residues.reshape(-1, params.N), params.prime_bits).reshape(1, -1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
def test_bytes_on_the_wire_are_pinned(name: str, kernels: Any) -> None:
    params = SETS[name]
    batch = packed(counting(params), params)
    assert batch.shape == (1, params.batch_bytes)
    zero, ones = np.zeros((1, params.k, params.m), np.int8), np.ones((1, params.terms, params.N), np.int8)
    made = kernels.encrypt_batches(counting(params), np.ones((1, params.N), np.int8), zero, ones, ring_of(params))
    words = (np.arange(2 * 70, dtype=np.uint32) * np.uint32(2654435761)).reshape(2, 70)
    rows = {str(bits): kernels.pack(words >> np.uint32(32 - bits), bits).tobytes().hex() for bits in (15, 18, 23, 24, 27)}
    assert {
        "batch": hashlib.sha256(batch.tobytes()).hexdigest(),
        "encrypted": hashlib.sha256(made.tobytes()).hexdigest(),
        "rows": rows,
    } == VECTORS[name]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
def test_decoding_undoes_encoding(name: str, kernels: Any) -> None:
    params, residues = SETS[name], counting(SETS[name])
    both = np.concatenate([packed(residues, params), packed(residues[::-1], params)])
    both.setflags(write=False)
    decoded = kernels.decode_batches(both, ring_of(params))
    np.testing.assert_array_equal(decoded, np.stack([residues, residues[::-1]]))
    assert kernels.decode_batches(both[:0], ring_of(params)).shape == (0, params.terms, 2, params.N)


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("prime", [0, 1])
@pytest.mark.parametrize("term", [0, -1])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("more", [0, "all bits"])
def test_a_coefficient_that_reaches_its_modulus_is_refused(
    kernels: Any, prime: int, term: int, place: int, more: Any
) -> None:
    p = TINY.outer_primes[prime]
    residues = counting(TINY)
    residues[term, prime, place] = p if more == 0 else (1 << TINY.prime_bits) - 1
    with pytest.raises(WireError, match=f"not below its modulus {p}"):
        kernels.decode_batches(packed(residues, TINY), ring_of(TINY))
    residues[term, prime, place] = p - 1
    kernels.decode_batches(packed(residues, TINY), ring_of(TINY))


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("length", [0, TINY.batch_bytes - 1, TINY.batch_bytes + 1, 2 * TINY.batch_bytes])
def test_a_batch_of_another_length_is_refused(kernels: Any, length: int) -> None:
    with pytest.raises(WireError, match=f"expected {TINY.batch_bytes} for each"):
        kernels.decode_batches(np.zeros((1, length), np.uint8), ring_of(TINY))


@given(st.integers(0, 4), st.integers(1, 100), st.integers(1, 32), st.integers(-2, 2))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_rows_are_cut_by_their_exact_length(rows: int, count: int, bits: int, more: int) -> None:
    length = rows * packed_bytes(count, bits)
    if more and length + more >= 0:
        with pytest.raises(WireError, match=f"expected {length}"):
            codec.rows_from(bytes(length + more), rows, count, bits)
    else:
        assert codec.rows_from(bytes(length), rows, count, bits).shape == (rows, packed_bytes(count, bits))


@pytest.mark.parametrize("rows", [-1, 1 << 40, 1 << 100])
def test_rows_that_are_only_announced_take_no_memory(rows: int) -> None:
    tracemalloc.start()
    with pytest.raises(WireError):
        codec.rows_from(bytes(100), rows, 1 << 20, 24)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=5))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_spans_survive_the_wire(numbers: list[tuple[int, int, int]]) -> None:
    spans = [Span(*three) for three in numbers]
    assert codec.spans_from(codec.flat_spans(spans)) == spans
    assert rows_of(spans) == sum(count for _, _, count in numbers)


@pytest.mark.parametrize("count", [1, 2, 4, 3 * codec.MAX_SPANS + 1, 3 * codec.MAX_SPANS + 3])
def test_numbers_that_are_no_spans_are_refused(count: int) -> None:
    with pytest.raises(WireError, match=f"{count} numbers are not up to 4096 spans"):
        codec.spans_from([1] * count)
    assert len(codec.spans_from([1] * 3 * codec.MAX_SPANS)) == codec.MAX_SPANS
