"""CUDA graphs: launches of fixed shapes on fixed buffers, recorded once and replayed without any Python between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    _branches.pop(stream.device.index, None)  # of a recording that failed
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        step()
        _join()
    return graph.replay


_branches: dict[int, torch.cuda.Stream] = {}
"""The branch of the graph that a device's current stream is recorded into, where it has one."""


@contextmanager
def branch(*read: torch.Tensor) -> Iterator[None]:
    """Where a graph is recorded, launch what is within beside what follows: nothing later in the graph may read its results.

    ``read`` are the tensors that it reads and others may forget. Elsewhere it is launched as ever.
    """
    if interpreted() or not torch.cuda.is_current_stream_capturing():
        yield
        return
    current = torch.cuda.current_stream()
    beside = _branches.get(current.device.index)
    if beside is None:
        beside = _branches[current.device.index] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(current)
    for tensor in read:
        tensor.record_stream(beside)
    with torch.cuda.stream(beside):
        yield


def _join() -> None:
    """Have the graph that is recorded end with its branch."""
    current = torch.cuda.current_stream()
    beside = _branches.pop(current.device.index, None)
    if beside is not None:
        current.wait_stream(beside)


def graph_pool() -> Pool | None:
    """A pool of memory for `capture`."""
    return None if interpreted() else torch.cuda.graph_pool_handle()
