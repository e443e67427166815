"""Floor and shares, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from veil.bench import limits
from veil.bench.phases import Samples
from veil.bench.record import Machine, Record
from veil.bundle.manifest import Group, Layer, Manifest
from veil.params import Params

PARAMS = Params.default()
MANIFEST = Manifest(
    (
        Group((Layer("a", "linear", 1500, 5000, 8, False), Layer("b", "linear", 1500, 1000, 8, False)), "body"),
        Group((Layer("head", "linear", 512, 100, 8, False),), "head"),
    )
)
MACHINE = Machine(
    processor="p", cores=2, system="s", memory_bytes=1, read_bytes_per_s=1e9, multiply_adds_per_s=1e10
)  # fmt: skip
TILES = 12 + 1
"""Of 16 blocks of 32 slots: 6,000 and 100 slots take 188 and 4 blocks."""
HINT_BYTES = TILES * 16 * 24 * 2 * 2048 * 3


def test_the_floor_counts_what_must_be_read(tiny_record: Record) -> None:
    subject = replace(tiny_record.model, remote_weights=1500 * 6000 + 512 * 100)
    found = limits.floor(PARAMS, MANIFEST, subject, MACHINE)
    elements = 188 + 64
    assert found.weights_bytes == 9_051_200
    assert found.hint_bytes == HINT_BYTES / 64
    assert found.public_bytes == 4 * (6100 * 64 + elements * 1536) / 64
    assert found.rows_bytes == 4 * (elements * 8 + 2 * 6100)
    total = found.weights_bytes + found.hint_bytes + found.public_bytes + found.rows_bytes
    assert found.seconds == pytest.approx(total / 1e9)


def test_shares_are_work_over_time_over_the_limit(tiny_record: Record) -> None:
    subject = replace(tiny_record.model, remote_weights=2_000_000)
    offline = {"rows, client": 0.001, "rows, server": 0.02}
    online = {"encrypt": 0.001, "product": 0.004, "decrypt": 0.002, "layers": 0.1}
    samples = Samples(offline_parts=[offline], online_parts=[online], bandwidths=[2e9, 1e9, 4e9])
    made = limits.limits(PARAMS, MANIFEST, subject, MACHINE, samples)
    by_name = {limit.name: limit for limit in made}
    assert by_name["offline rows, server: G read once a batch"].share == pytest.approx(HINT_BYTES / (64 * 0.02) / 2e9)
    adds = (188 + 4) * 24 * 2 * 2048
    assert by_name["offline rows, server: multiply-adds"].share == pytest.approx(adds / (64 * 0.02) / 1e10)
    assert by_name["offline rows, client"].timing.median_s == 0.001
    assert by_name["all online products of one row"].share == pytest.approx(2e6 / 0.004 / 2e9)
    assert by_name["client's encryption and decryption of a token"].timing.median_s == pytest.approx(0.003)
    gpu = replace(MACHINE, multiply_adds_per_s=None, accelerator="a GPU")
    assert len(limits.limits(PARAMS, MANIFEST, subject, gpu, samples)) == len(made) - 1
    whole = Samples(offline_parts=[{"rows": 0.01}], online_parts=[{"whole pass": 0.004}])
    rows, token = limits.limits(PARAMS, MANIFEST, subject, gpu, whole)
    assert (rows.timing.median_s, rows.share) == (0.01, None)
    assert token.share == pytest.approx(2e6 / 0.004 / 1e9)
