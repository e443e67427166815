"""Floor and shares, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from veil.bench import limits
from veil.bench.phases import PHASES, OnePass, Samples
from veil.bench.record import Machine, Record
from veil.model.manifest import Group, Layer, Manifest
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


def test_the_floor_counts_what_must_be_read(tiny_record: Record) -> None:
    subject = replace(tiny_record.model, remote_weights=1500 * 6000 + 512 * 100)
    found = limits.floor(PARAMS, MANIFEST, subject, MACHINE)
    assert found.weights_bytes == 9_051_200
    assert found.hint_bytes == 3 * 4096 * 1024 * 2 * 4 / 16
    assert found.digits_bytes == (255 + 3 * 3) * 6 * 4096 * 4
    assert found.masks_bytes == ((2 + 1) * 1024 + 2 * 6100) * 4
    total = found.weights_bytes + found.hint_bytes + found.digits_bytes + found.masks_bytes
    assert found.seconds == pytest.approx(total / 1e9)


def test_shares_are_work_over_time_over_the_limit(tiny_record: Record) -> None:
    subject = replace(tiny_record.model, remote_weights=2_000_000, remote_layers=4)
    ahead = {name: 0.01 for name, (moment, _) in PHASES.items() if moment == "ahead"}
    online = {name: 0.004 for name, (moment, _) in PHASES.items() if moment == "online"}
    samples = Samples(ahead_parts=[ahead], online_parts=[online], online_bandwidths=[2e9, 1e9, 4e9])
    passes = [OnePass(0.2, 8e8), OnePass(0.2, 1e9), OnePass(0.4, 1e9)]
    made = limits.limits(PARAMS, MANIFEST, subject, MACHINE, samples, passes)
    by_name = {limit.name: limit for limit in made}
    hint_bytes = 3 * 4096 * 1024 * 2 * 4
    assert by_name["Ĥ product for one mask"].share == pytest.approx(hint_bytes / 0.2 / 1e9)
    adds = 2 * 1024 * 3 * 4096 * 16
    assert by_name["Ĥ product for 16 masks"].share == pytest.approx(adds / 0.16 / 1e10)
    assert by_name["all online products of one row"].share == pytest.approx(2e6 / 0.004 / 2e9)
    assert by_name["expansion and combination of a mask"].timing.median_s == pytest.approx(0.02)
    assert by_name["a remote layer's call beside its kernels"].timing.median_s == pytest.approx(0.001)
    card = replace(MACHINE, multiply_adds_per_s=None, accelerator="a card")
    there = limits.limits(PARAMS, MANIFEST, subject, card, samples, passes)
    assert len(there) == len(made) - 1
