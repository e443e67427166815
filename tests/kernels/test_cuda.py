"""What is the CUDA backend's own: the stream cipher behind its errors, tiles of every shape, and graphs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from veil.kernels.cuda import ntt_domain, product
from veil.kernels.cuda.backend import CudaKernels
from veil.kernels.cuda.constants import constants
from veil.kernels.cuda.device import empty, put, target
from veil.kernels.cuda.graphs import capture, graph_pool
from veil.kernels.cuda.secret import DeviceErrors
from veil.kernels.gaussian import GaussianTable
from veil.kernels.interface import Rows
from veil.kernels.reference import matmul, pack, residues
from veil.kernels.reference_kernels import ReferenceKernels
from veil.kernels.ring import ring_of
from veil.params import Params

pytestmark = pytest.mark.usefixtures("interpreter")
KERNELS, REFERENCE = CudaKernels(), ReferenceKernels()


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(7)


class Keys:
    """Words that are told."""

    def __init__(self) -> None:
        self.given = 0

    def words64(self, count: int) -> np.ndarray:
        self.given += 1
        return np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self.given)

    def words16(self, count: int) -> np.ndarray:
        raise AssertionError("errors are drawn on the GPU")


def key_stream(given: int, words: int) -> np.ndarray:
    """ChaCha20's 64-bit words under the key of that number."""
    keys = Keys()
    keys.given = given - 1
    cipher = Cipher(algorithms.ChaCha20(keys.words64(4).tobytes(), bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * words)), dtype="<u8")


def test_errors_are_chacha20s_words_through_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceErrors, "_REKEY_BLOCKS", 130)
    keys, table = Keys(), GaussianTable(3.2)
    errors = KERNELS.errors(keys, 3.2)
    drawn = [KERNELS.to_numpy(errors.draw(*shape)).reshape(-1) for shape in ((7, 3), (1,), (40, 31))]
    # Each draw begins at a block of 8 words; the key changes after 130 blocks.
    first, second = key_stream(1, 8 * 130), key_stream(2, 8 * 130)
    stream = [first[:21], first[24:25], np.concatenate([first[32:], second[: 40 * 31 - 8 * 126]])]
    for values, words in zip(drawn, stream, strict=True):
        np.testing.assert_array_equal(values, np.searchsorted(table.bounds, words, side="right") - table.largest)
    assert keys.given == 2
    assert repr(errors) == "<DeviceErrors>"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(errors)


@pytest.mark.parametrize("degree", [16, 32, 64, 128, 256])
def test_transforms_of_every_remainder(degree: int, draw: np.random.Generator) -> None:
    """Three stages of butterflies at once, and none, one or two that are left over."""
    params = Params.insecure_tiny(inner_rank=1, inner_degree=degree, batch_rows=16, outer_degree=max(64, degree))
    ring = ring_of(params)
    values = draw.integers(-(1 << 31), 1 << 31, (1, 1, degree)).astype(np.int32)
    values[0, 0, :3] = -(1 << 31), (1 << 31) - 1, -1
    made = ntt_domain.small_ntt(put(values), constants(ring, target()).inner, constants(ring, target()))
    for i, table in enumerate(ring.inner):
        np.testing.assert_array_equal(KERNELS.to_numpy(made)[:, :, i], residues(values, table))


@pytest.mark.parametrize("tile", [(1, 1, 16, 1, 1), (4, 2, 8, 2, 1), (2, 4, 16, 4, 2), (8, 4, 4, 1, 1)])
@pytest.mark.parametrize("batches", [1, 5])
def test_sums_in_tiles_of_every_shape(tile: tuple[int, ...], batches: int, draw: np.random.Generator) -> None:
    ring = ring_of(Params.insecure_tiny(inner_rank=2, inner_degree=32, batch_rows=16, outer_degree=64))
    k, count = constants(ring, target()), 5
    words = draw.integers(0, 1 << 32, (count, 2, ring.terms, 3, ring.N // 4), dtype=np.uint64).astype(np.uint32)
    factors = draw.integers(0, min(ring.primes), (batches, ring.terms, 2, ring.N), dtype=np.uint32)
    out = empty(batches, count, 2, ring.N)
    ntt_domain.sums(put(words), put(factors), k, out, ntt_domain.SumTile(*tile))
    last = (words[..., 0, :] >> 24) | ((words[..., 1, :] >> 24) << 8) | ((words[..., 2, :] >> 24) << 16)
    whole = np.concatenate([words[..., 0, :] & 0xFFFFFF, words[..., 1, :] & 0xFFFFFF, words[..., 2, :] & 0xFFFFFF, last], -1)
    actual = KERNELS.to_numpy(out).astype(object)
    for i, p in enumerate(ring.primes):
        sums = (whole[None, :, i].astype(object) * factors[:, None, :, i].astype(object)).sum(axis=2)
        assert (actual[:, :, i] * (1 << 32) % p == sums % p).all()
        assert (actual[:, :, i] < sums // (1 << 32) + p + 1).all()


@pytest.mark.parametrize("tile", [(16, 16, 32, 1, 1), (64, 32, 64, 4, 3)])
@pytest.mark.parametrize("shape", [(1, 5, 1), (70, 64, 3), (130, 33, 40)])
@pytest.mark.parametrize("limbs", [1, 2, 3, 4])
def test_products_in_tiles_of_every_shape(
    shape: tuple[int, int, int], tile: tuple[int, ...], limbs: int, draw: np.random.Generator
) -> None:
    rows, width, columns = shape
    weights = draw.integers(-128, 128, (rows, width), dtype=np.int8)
    parts = draw.integers(-128, 128, (limbs, columns, width), dtype=np.int8)
    words = sum(part.astype(np.int64) << 8 * b for b, part in enumerate(parts)) << 32 - 8 * limbs
    made = product.multiply(put(weights), put(parts), product.ProductTile(*tile))
    np.testing.assert_array_equal(KERNELS.to_numpy(made), matmul(weights, words.astype(np.uint32)))


def test_a_step_is_captured_once_and_replayed_on_what_its_buffers_hold(draw: np.random.Generator) -> None:
    weights = draw.integers(-128, 128, (9, 20), dtype=np.int8)
    held, shares = put(weights), KERNELS.zeros(1, 9)
    data, out = KERNELS.asarray(np.zeros((1, 60), dtype=np.uint8)), torch.zeros((1, 18), dtype=torch.uint8)
    out = out.to(target())

    def step() -> None:
        out.copy_(KERNELS.answer(data, held, [Rows(shares, 0, 1)], 0, (24, 16)))

    replay = capture(step, graph_pool())
    for _ in range(2):
        words = draw.integers(0, 1 << 24, (1, 20), dtype=np.uint32)
        h = draw.integers(0, 1 << 32, (1, 9), dtype=np.uint64).astype(np.uint32)
        data.copy_(put(pack(words, 24)))
        shares.copy_(put(h))
        replay()
        expected = REFERENCE.answer(pack(words, 24), weights, [Rows(h, 0, 1)], 0, (24, 16))
        np.testing.assert_array_equal(KERNELS.to_numpy(out), expected)
