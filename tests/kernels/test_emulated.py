"""The CPU kernels on an ARM64 that QEMU emulates: their code is compiled there, and gives what the reference gives.

``sh tests/kernels/arm64.sh build/arm64`` makes it on Debian 12; `test_other_processors.py` needs nothing. A file at a time,
with compiled kernels kept between them, takes half an hour on a busy machine: 434 tests.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VEIL_ARM64", ROOT / "build" / "arm64")) / "python"
LEAST = {"residuals": 5, "cpu_online": 200, "kernels": 120}
"""Files of tests, and how many at least run there."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no ARM64 here: sh tests/kernels/arm64.sh build/arm64"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled kernels."""
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.parametrize("name", LEAST)
def test_kernels_give_what_the_reference_gives(name: str, compiled: Path) -> None:
    own = {"PYTHONPATH": str(ROOT / "src"), "NUMBA_CACHE_DIR": str(compiled), "NUMBA_NUM_THREADS": "2"}
    which = [f"tests/kernels/test_{name}.py", "-k", "cpu", "-m", "not slow and not gpu"]
    command = [str(PYTHON), "-m", "pytest", *which, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= LEAST[name]
