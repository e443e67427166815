"""What a server compiles at its first start on a machine: the CPU kernels, and those that read and answer connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from veil.kernels import warm
from veil.progress import Progress
from veil.server import batch_table, front_io, fronts, joined_rounds, row_io, spending
from veil.server.arrivals import Arrivals

OWN = "veil.server.warm"
"""The part that this module is, see `veil.kernels.warm`."""
SOURCES = (
    Path(row_io.__file__),
    Path(front_io.__file__),
    Path(batch_table.__file__),
    Path(spending.__file__),
)


def steps() -> Iterator[Callable[[], object]]:
    """The steps of this part."""
    arrivals = Arrivals(1, 1)
    yield arrivals.compile_receiving
    yield arrivals.compile_answering
    if row_io.AVAILABLE:
        yield fronts.compile_kernel
        yield joined_rounds.compile_kernels


def warm_up(progress: Progress | None = None, *, on_gpu: bool = False) -> None:
    """Compile what was not compiled before on this machine; a GPU's server needs no other kernel of the processor's."""
    warm.warm_up(progress, (OWN,) if on_gpu else (warm.OWN, OWN))
