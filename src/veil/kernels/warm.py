"""The CPU kernels' first use on a machine: Numba compiles each once, about a minute in all, and caches it on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

from veil.kernels import cpu, cpu_online
from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.progress import Progress

STAGE = "compiling the CPU kernels, once on this machine"
_log = logging.getLogger("veil")


def warm_up(progress: Progress | None = None) -> None:
    """Load every kernel on tiny inputs. Where they are not cached yet, say so once and report progress."""
    cpu.pack(np.zeros((1, 8), dtype=np.uint32), 8)
    if not cpu_online.pack.stats.cache_misses:
        return
    _log.info("%s (about a minute)", STAGE)
    steps = list(every_kernel(ring_of(Params.insecure_tiny())))
    for done, step in enumerate(steps):
        if progress:
            progress(STAGE, done, len(steps))
        step()
    if progress:
        progress(STAGE, len(steps), len(steps))


def every_kernel(ring: Ring) -> Iterator[Callable[[], object]]:
    """Calls that together compile every kernel for the array types of real use (bytes off the wire are read-only)."""
    words = np.zeros((1, 8), dtype=np.uint32)
    weights = np.ones((8, ring.n), dtype=np.int8)
    cumulative, guide = np.full(1, 1 << 63, dtype=np.uint64), np.zeros(4096, dtype=np.int32)
    keys = np.zeros((ring.levels, 2, 3, ring.N), dtype=np.uint32)
    half = np.zeros((2, ring.N), dtype=np.uint32)
    public = np.zeros((1, ring.n), dtype=np.uint32)
    leaves = np.zeros((2, ring.N, 1, ring.leaves), dtype=np.uint32)
    hint = np.zeros((2, ring.N, ring.fold, ring.leaves), dtype=np.uint32)
    products = np.zeros((ring.fold, 2, ring.N), dtype=np.uint32)
    digits = np.zeros((ring.leaves - 1, 2, 3, ring.N), dtype=np.uint32)
    x, tau = np.ones((1, 8), dtype=np.float32), np.ones(1)
    points = np.zeros((1, 2, ring.n), dtype=np.uint32)
    received = np.frombuffer(bytes(24), dtype=np.uint8).reshape(1, 24)
    yield lambda: (cpu.unpack(received, 8, 24), cpu.unpack(cpu.pack(words, 8), 8, 8))
    yield lambda: cpu.ntt(half[:1], ring.tables[0])
    yield lambda: cpu.intt(half[:1], ring.tables[0])
    yield lambda: cpu.load_keys(keys, ring)
    yield lambda: cpu.expand_a(half, keys, ring)
    yield lambda: cpu.expand_b(half[None], [digits], [keys], ring)
    yield lambda: cpu.product(hint, leaves, ring)
    yield lambda: cpu.combine_a(products, keys[: ring.fold - 1], 20, ring)
    yield lambda: cpu.inner_hint(weights, public, 18, ring)
    yield lambda: cpu.outer_hint(np.zeros((1, ring.n), dtype=np.int32), ring)
    yield lambda: cpu.secret_products(points, points[0], ring.inner_tables, ring)
    yield lambda: cpu.read_lines(weights, 0, 8)
    yield lambda: cpu.gaussian(np.frombuffer(bytes(8), dtype=np.uint64), cumulative, guide)
    yield lambda: cpu.matmul(weights[:, :8].copy(), words)
    yield lambda: cpu.answer(received, weights[:, :8].copy(), words, 24, 18)
    yield lambda: cpu.answer(received, weights[:, :8].copy(), words, 24, 18, serial=True)
    yield lambda: cpu.encrypt(x, cpu.scales(x, 1.0), words, 24)
    yield lambda: cpu.dequantize(cpu.decrypt(received, words, 18), tau, x[0], x[0])
