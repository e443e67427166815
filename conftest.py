"""What is settled before the first test: how threads wait, where Triton runs, a cache folder, long files first."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

# Threads of OpenMP sleep where they wait for each other: spinning costs the other processes of a run their time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Without a GPU, Triton's interpreter runs the CUDA backend's kernels; it must be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_LONG = (
    "tests/remote/test_processes.py",
    "tests/attacks/",
    "tests/remote/",
    "tests/gateway/",
)
"""Files with long tests: they begin first, so that no worker is left alone with one at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """One cache folder for all processes of a run, gone after it, so that no test writes into the user's own.

    The kernels that Numba compiled lie elsewhere, beside their source, and stay.
    """
    if not hasattr(config, "workerinput"):  # the processes of pytest-xdist inherit the environment
        folder = tempfile.mkdtemp(prefix="veil-tests-")
        os.environ["VEIL_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)  # --random-order has shuffled by then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = [index for index, start in enumerate(_LONG) if item.nodeid.startswith(start)]
        return found[0] if found else len(_LONG)

    items.sort(key=place)
