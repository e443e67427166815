"""What stands beside the tests can be imported by them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where both halves compute: on the processor and, where there is one, on a card."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a card")
    return str(request.param)
