"""A hint on the device prepares exactly the shares that a hint of the reference does, and answers with the same bytes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from veil.crypto import public
from veil.crypto.device_hint import DeviceHint, check_memory, needed_bytes
from veil.crypto.hint import Hint, HintRows, MaskHalf, hint_bytes, prepare_keys
from veil.crypto.secret import OuterKey, inner_secret
from veil.errors import DeviceUnavailable
from veil.kernels import cpu, cuda
from veil.params import Params
from veil.random import SecretRng
from veil.seed import PublicSeed
from veil.server.arithmetic import DeviceArithmetic, HostArithmetic

pytestmark = pytest.mark.usefixtures("interpreter")

SETS = [
    pytest.param(Params.insecure_tiny(outer_degree=64, masks_per_epoch=3), id="tiny"),
    pytest.param(Params.default(), id="default", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("params", SETS)
def test_device_and_host_agree_exactly(params: Params) -> None:
    if params.security_bits and not torch.cuda.is_available():
        pytest.skip("the default set needs a card")
    draw = np.random.default_rng(0)
    shapes = [(params.N - 3, params.n // 2), (9, 2 * params.n + 1), (params.N + 5, 7)]
    weights = [draw.integers(-127, 128, shape, dtype=np.int8) for shape in shapes]
    segments = {"body": [HintRows(0, weights[0]), HintRows(1, weights[1])], "head": [HintRows(2, weights[2])]}
    seed = PublicSeed(bytes(range(32)))
    host, host_tables = Hint.build(params, seed, segments, cpu)
    device, device_tables = DeviceHint.build(params, seed, segments)
    for name in segments:
        np.testing.assert_array_equal(host_tables[name], device_tables[name])
    uploads = []
    for epoch in range(2):
        rng = SecretRng.insecure_for_tests(epoch)
        key = OuterKey(params, cpu, rng)
        halves = key.galois_keys(public.key_halves(seed, params))
        for index in (2, 0):
            mask = key.encrypt_mask(index, public.mask_half(seed, params, index), inner_secret(rng, params))
            uploads.append((index, mask, halves))
    shares = {}
    for kernels, hint in ((cpu, host), (cuda, device)):
        keys = {id(halves): prepare_keys(halves, params, kernels) for _, _, halves in uploads}
        masks = [MaskHalf(index, mask, keys[id(halves)]) for index, mask, halves in uploads]
        shares[kernels.name] = hint.prepare(masks, ["body", "head"])
    for name in segments:
        np.testing.assert_array_equal(shares["cpu"][name], cuda.to_numpy(shares["cuda"][name]))
    on_host, on_device = HostArithmetic(weights, cpu), DeviceArithmetic(weights)
    for count in (0, 1, 3):
        rows = cpu.pack(draw.integers(0, 1 << 24, (count, shapes[1][1]), dtype=np.uint32), 24)
        slots = slice(shapes[0][0], shapes[0][0] + 9)
        expected = on_host.reply(1, rows, [shares["cpu"]["body"][t][slots] for t in range(count)], 24, 18)
        got = on_device.reply(1, rows, [on_device.own(shares["cuda"]["body"][t])[slots] for t in range(count)], 24, 18)
        np.testing.assert_array_equal(expected, got)


def test_memory_is_stated_and_what_does_not_fit_is_refused_with_figures() -> None:
    params, slots, weights = Params.default(), [155_520, 49_152], 134_000_000
    needed = needed_bytes(params, slots, weights)
    assert hint_bytes(params, slots) + weights < needed < hint_bytes(params, slots) + weights + (2 << 30)
    with pytest.raises(DeviceUnavailable, match=r"3\.5 GB on the card .* 204,672 outputs, but 2\.0 GB are free"):
        check_memory(params, slots, weights, 2 * 10**9)
    assert re.search(r"3\.5 GB on the card .*, 80\.0 GB are free", check_memory(params, slots, weights, 80 * 10**9))
