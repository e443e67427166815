"""What checking answers compiles at its first use on a machine; see `veil.kernels.warm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from veil.checks import one_row

OWN = "veil.checks.warm"
"""The part that this module is."""

SOURCES = (Path(one_row.__file__),)


def steps() -> Iterator[Callable[[], object]]:
    """The steps of this part."""
    nothing, sums = np.zeros(0), np.zeros((0, 0))
    row, table = np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
    yield lambda: one_row.add_row(nothing, nothing, np.zeros(0, np.int64), sums, 0.0, sums.copy(), nothing.copy())
    yield lambda: one_row.refine_likely(row, table, 1, row.copy())
