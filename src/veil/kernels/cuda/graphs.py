"""CUDA graphs: launches of fixed shapes on fixed buffers, recorded once and replayed without any Python between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from veil.kernels.cuda.device import interpreted

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool


def capture(step: Callable[[], object], pool: Pool | None = None, *, warm: bool = True) -> Callable[[], object]:
    """Record the launches of ``step`` (fixed shapes, fixed buffers) as one CUDA graph; the result replays it.

    The step runs once before, unless all that it launches is known to be ``warm`` (False). Graphs of one ``pool``
    (`graph_pool`) share the memory of what they make on the way, so the results of one are gone when another is replayed.
    """
    if interpreted():
        if warm:
            step()
        return step
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch's own for graphs is of the first GPU that had one
    if warm:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        step()
    return graph.replay


def graph_pool() -> Pool | None:
    """A pool of memory for `capture`."""
    return None if interpreted() else torch.cuda.graph_pool_handle()
