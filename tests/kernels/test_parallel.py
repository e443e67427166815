"""Threads that call kernels at once, under every threading layer that Numba may find."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from veil.kernels.cpu import parallel

CALLS = """
import threading, numpy as np
from veil.kernels.cpu import packing, parallel
{mutation}
values = np.arange(64 * 20_000, dtype=np.uint32).reshape(64, 20_000) % 4096
expected = np.zeros((64, 30_000), np.uint8)
packing.pack(values, 12, 1, expected)
wrong = []
def work():
    for _ in range(60):
        out = np.zeros_like(expected)
        packing.pack(values, 12, 2, out)
        wrong.append(not np.array_equal(out, expected))
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(parallel.layer(), len(wrong), any(wrong))
"""
WITHOUT = "parallel._found.append('omp')"


def run(layer: str, mutation: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CALLS.format(mutation=mutation)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_threads_call_kernels_at_once(layer: str) -> None:
    done = run(layer)
    assert done.returncode == 0, done.stderr
    found, calls, wrong = done.stdout.split()
    assert (calls, wrong) == ("180", "False")
    assert found == "workqueue" if layer == "workqueue" else found in ("omp", "tbb", "workqueue")


def test_without_turns_the_process_is_ended() -> None:
    done = run("workqueue", WITHOUT)
    assert done.returncode != 0 and "Concurrent access" in done.stderr


def test_a_layer_is_found_and_there_is_a_remedy() -> None:
    assert parallel.layer() in ("omp", "tbb", "workqueue")
    assert "install" in parallel.remedy() or sys.platform == "darwin"
