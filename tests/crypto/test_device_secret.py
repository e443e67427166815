"""Keys and masks made on a device are the host's, integer for integer, for the same secrets and the same uniform words."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from veil.crypto import public
from veil.crypto.device_secret import DeviceMaskMaker, DeviceOuterKey, DeviceRng, Errors
from veil.crypto.mask import MaskMaker
from veil.crypto.secret import OuterKey, inner_secret
from veil.errors import WireError
from veil.kernels import cpu, cuda, cuda_secret
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.wire import codec, device_codec

pytestmark = pytest.mark.usefixtures("interpreter")

SETS = [
    pytest.param(Params.insecure_tiny(outer_degree=64, masks_per_epoch=3), id="tiny"),
    pytest.param(Params.default(), id="default", marks=pytest.mark.gpu),
]


class Recorder:
    """The host's randomness, and the words that it gave."""

    def __init__(self, seed: int) -> None:
        self._rng = SecretRng.insecure_for_tests(seed)
        self.words: list[np.ndarray] = []

    def words64(self, count: int) -> Any:
        self.words.append(self._rng.words64(count))
        return self.words[-1]

    def ternary(self, count: int) -> Any:
        return self._rng.ternary(count)


class Replay:
    """Words given before, on the device."""

    def __init__(self, words: list[np.ndarray]) -> None:
        self._words = np.concatenate(words)

    def words64(self, count: int) -> torch.Tensor:
        taken, self._words = self._words[:count], self._words[count:]
        assert len(taken) == count
        return cuda.asarray(taken.copy())


def usable(params: Params) -> Params:
    if bool(params.security_bits) == cuda.interpreted():
        pytest.skip("the default set needs a card, and a card takes long to compile for another")
    return params


@pytest.mark.parametrize(("first", "blocks"), [(0, 1), (1, 130), (16, 3), (5, 0)])
def test_the_stream_is_chacha20(first: int, blocks: int) -> None:
    key = bytes(range(32))
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(64 * (first + blocks)))
    made = cuda_secret.key_stream(cuda.asarray(np.frombuffer(key, dtype=np.uint32)), first, blocks)
    np.testing.assert_array_equal(cuda.to_numpy(made), np.frombuffer(stream[64 * first :], dtype=np.uint32))


def test_the_stream_never_repeats_and_has_a_new_key_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceRng, "_REKEY_BLOCKS", 4)
    rng = DeviceRng(SecretRng.insecure_for_tests(3))
    words = np.concatenate([cuda.to_numpy(rng.words64(count)) for count in (3, 8, 9, 17, 0, 1, 32)])
    assert len(words) == 70
    assert len(set(words.tolist())) == 70
    assert repr(rng) == "<DeviceRng>"
    for leak in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            leak(rng)


@pytest.mark.parametrize("params", SETS)
def test_keys_and_masks_equal_the_hosts(params: Params) -> None:
    usable(params)
    seed, count = PublicSeed(bytes(range(32))), params.masks_per_epoch - 1
    widths, draw = [params.n // 2, 2 * params.n + 1], np.random.default_rng(0)
    bits = params.spec.public_mask_bits
    table = draw.integers(0, 1 << bits, (params.masks_per_epoch, 2 * params.N), dtype=np.uint32)
    table[0, :3] = [0, (1 << bits) - 1, 1 << (bits - 1)]
    host = Recorder(1)
    key = OuterKey(params, cpu, host)  # type: ignore[arg-type]
    halves = public.key_halves(seed, params)
    sets = np.stack([public.mask_half(seed, params, m) for m in range(params.masks_per_epoch)])
    keys = key.galois_keys(halves)
    outer, host.words = host.words, []
    secrets = [inner_secret(host, params) for _ in range(count)]  # type: ignore[arg-type]
    masks = np.stack([key.encrypt_mask(m, sets[m], secret) for m, secret in enumerate(secrets)])
    outer, host.words = outer + host.words, []
    maker = MaskMaker(params, seed, widths, {"body": table}, cpu)
    made = [maker.make(m, m, key, s, ["body"], host) for m, s in enumerate(secrets)]  # type: ignore[arg-type]

    own = DeviceOuterKey(params, SecretRng.insecure_for_tests(1), Errors(params.spec.outer_sigma, Replay(outer)))
    np.testing.assert_array_equal(cuda.to_numpy(own.points), key.points)
    own_keys = own.galois_keys(cuda.asarray(halves))
    np.testing.assert_array_equal(cuda.to_numpy(own_keys), keys)
    stacked = cuda.asarray(np.stack(secrets))
    public_halves = cuda.asarray(sets)
    own_masks = torch.cat(
        [own.encrypt_masks(0, public_halves, stacked[:1]), own.encrypt_masks(1, public_halves, stacked[1:])]
    )
    np.testing.assert_array_equal(cuda.to_numpy(own_masks), masks)
    own_maker = DeviceMaskMaker(params, seed, widths, {"body": table}, Errors(params.spec.inner_sigma, Replay(host.words)))
    assert [own_maker.group_start(group) for group in range(2)] == [maker.group_start(group) for group in range(2)]
    for first, last in ((0, 1), (1, count)):
        rows, shares = own_maker.make(first, own, stacked[first:last], ["body"])
        np.testing.assert_array_equal(cuda.to_numpy(rows), np.stack([mask.rows for mask in made[first:last]]))
        np.testing.assert_array_equal(
            cuda.to_numpy(shares["body"]), np.stack([mask.mu["body"] for mask in made[first:last]])
        )
    with pytest.raises(RuntimeError, match="not the next unused"):
        own.encrypt_masks(0, public_halves, stacked[:1])

    packed = device_codec.encode_keys(own_keys, params)
    assert cuda.to_numpy(packed).tobytes() == codec.encode_keys(keys, params, cpu)
    np.testing.assert_array_equal(cuda.to_numpy(device_codec.decode_keys(packed, params)), keys)
    packed = device_codec.encode_masks(own_masks, params)
    assert cuda.to_numpy(packed).tobytes() == b"".join(codec.encode_mask(mask, params, cpu) for mask in masks)
    np.testing.assert_array_equal(cuda.to_numpy(device_codec.decode_masks(packed, count, params)), masks)


def test_damaged_bytes_are_refused() -> None:
    params = Params.insecure_tiny(outer_degree=64)
    packed = cuda.asarray(np.zeros((2, params.mask_bytes), dtype=np.uint8))
    device_codec.decode_masks(packed, 2, params)
    with pytest.raises(WireError, match="bytes of residues"):
        device_codec.decode_masks(packed[:, 1:], 2, params)
    with pytest.raises(WireError, match="bytes of residues"):
        device_codec.decode_masks(packed, 1, params)
    packed[1, -4:] = 255
    with pytest.raises(WireError, match="not below its modulus"):
        device_codec.decode_masks(packed, 2, params)
