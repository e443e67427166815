"""Without a GPU, Triton's interpreter runs the CUDA backend's kernels; it must be chosen before triton is imported."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_LONG = (
    "tests/remote/test_processes.py",
    "tests/gateway/test_smollm2.py",
    "tests/attacks/",
    "tests/remote/",
    "tests/gateway/",
)
"""Files with long tests: they begin first, so that no worker is left alone with one at the end."""


@pytest.hookimpl(trylast=True)  # --random-order has shuffled by then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = [index for index, start in enumerate(_LONG) if item.nodeid.startswith(start)]
        return found[0] if found else len(_LONG)

    items.sort(key=place)
