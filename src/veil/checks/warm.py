"""What checking answers compiles at its first use on a machine; see `veil.kernels.warm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from veil.checks import likely

OWN = "veil.checks.warm"
"""The part that this module is."""

SOURCES = (Path(likely.__file__),)


def steps() -> Iterator[Callable[[], object]]:
    """The steps of this part."""
    row, table = np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
    yield lambda: likely.refine_likely(row, table, 1, row.copy())
