"""What is said about the machine."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from veil.bench import machine
from veil.bench.record import Machine


def test_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 22)
    found = machine.describe()
    assert found.processor and found.cores >= 1 and found.memory_bytes > 1 << 28
    assert found.read_bytes_per_s > 0
    assert found.multiply_adds_per_s is not None and found.multiply_adds_per_s > 0
    assert found.accelerator is None


def test_the_burst_computes_what_it_says() -> None:
    """``sum += low32(x)·low32(sum)``, x and the first sum starting at the part's number plus the lane."""
    result = machine.multiply_adds(3, 5)
    for part in range(3):
        expected = 0
        for lane in range(machine.sum_lanes()):
            x = total = part + lane
            for _ in range(5):
                total = (total + (x & 0xFFFFFFFF) * (total & 0xFFFFFFFF)) % (1 << 64)
                x += 1
            for _ in range(machine.CHAINS):
                expected ^= total
        assert int(result[part]) == expected


def test_the_read_reads_everything() -> None:
    data = np.arange(1 << 10, dtype=np.uint64)
    folded = int(np.bitwise_xor.reduce(machine.read_all(data, 8)))
    assert folded == int(np.bitwise_xor.reduce(data))


def test_the_better_of_two_descriptions() -> None:
    one = Machine(
        processor="p", cores=2, system="s", memory_bytes=1, read_bytes_per_s=3.0, multiply_adds_per_s=4.0
    )  # fmt: skip
    both = machine.better(one, replace(one, read_bytes_per_s=2.0, multiply_adds_per_s=9.0))
    assert (both.read_bytes_per_s, both.multiply_adds_per_s) == (3.0, 9.0)
    gpu = replace(one, multiply_adds_per_s=None)
    assert machine.better(gpu, gpu).multiply_adds_per_s is None


def test_memory_high_water_follows_an_allocation() -> None:
    if not machine.reset_high_water():
        pytest.skip("the system keeps one high-water for a process's whole life")
    before = machine.resident_peak_bytes()
    np.ones(1 << 28, dtype=np.uint8)  # too large to be taken from what the process had before
    assert machine.resident_peak_bytes() - before > 200 << 20
    machine.reset_high_water()
    assert machine.resident_peak_bytes() - before < 200 << 20
    assert machine.high_water_bytes() > 20 << 20


def test_versions_and_commit() -> None:
    assert {"python", "veil", "numpy", "numba", "torch", "transformers"} <= set(machine.versions())
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", machine.commit())
    assert "cores, Python 3." in machine.name()
