"""The CPU kernels' first use on a machine: Numba compiles each once, about a minute in all, and caches it on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu import checking, online, packing, product
from veil.kernels.cpu.backend import CpuKernels
from veil.kernels.interface import Rows, Scaling
from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.progress import Progress

STAGE = "compiling the CPU kernels, once on this machine"
_ROWS = 32
_log = logging.getLogger("veil")


def warm_up(progress: Progress | None = None) -> None:
    """Load every kernel on tiny inputs. Where they are not cached yet, say so once and report progress."""
    CpuKernels().pack(np.zeros((1, 8), dtype=np.uint32), 8)
    if not packing.compiled_now():
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
    kernels, rng = CpuKernels(), _Words()
    weights = np.ones((8, 8), dtype=np.int8)
    a = np.zeros((1, ring.k, ring.m), dtype=np.uint32)
    public = np.zeros((ring.terms, 2, ring.N), dtype=np.uint32)
    secret, z = np.zeros((ring.k, ring.m), dtype=np.int8), np.zeros(ring.N, dtype=np.int8)
    hint, inner = kernels.new_hint(1, ring), kernels.load_inner(a, ring)
    words = kernels.zeros(ring.T, max(ring.w, ring.r, 8))
    rows = [Rows(words, 0, 1)]
    ones = np.ones(8, dtype=np.float32)
    received = np.frombuffer(bytes(24), dtype=np.uint8).reshape(1, 24)
    x, tau = np.ones((1, 8), dtype=np.float32), np.ones(1)
    scaling = Scaling(None, ones, ones, 1.0, 0.0)
    yield lambda: (kernels.unpack(received, 8, 24), kernels.pack(words[:1], 8))
    yield lambda: kernels.fill_hint(hint, 0, kernels.inner_hint(weights, a, ring), ring)
    yield lambda: kernels.prepare(hint, public[None], 32, ring)
    yield lambda: kernels.load_inner(a, ring)
    yield lambda: kernels.encrypt_batch(public, z, secret, kernels.errors(rng, 3.2).draw(ring.terms, ring.N), ring)
    yield lambda: kernels.pads(inner, secret, kernels.errors(rng, 3.2).draw(ring.T, ring.r), ring)
    yield lambda: kernels.shares(kernels.load_public(words[:, : ring.w].copy(), ring), z, ring.w, ring)
    for count, threads in ((_ROWS, 1), (2 * _ROWS, 2), (1, 2)):
        for read_only in (True, False):
            yield partial(_steps, count, threads, received=read_only)
    yield lambda: kernels.decrypt(received[:, :16], scaling, rows, 0, 16, tau)
    yield lambda: kernels.decrypt_checked(
        received[:, :16], x, scaling, rows, 0, 16, tau, _vectors(kernels), np.empty((1, 1))
    )
    yield lambda: kernels.encrypt(x, scaling, rows, 0, 24)
    yield lambda: kernels.answer(received, weights, rows, 0, (24, 16))
    yield lambda: list(kernels.prefetch(weights))


def _steps(rows: int, threads: int, *, received: bool) -> None:
    """The steps of some rows with these threads; what is ``received`` is read-only."""

    def packed(size: int) -> NDArray[np.uint8]:
        data = np.zeros((rows, size), dtype=np.uint8)
        data.flags.writeable = not received
        return data

    weights, ones, scales = np.ones((8, 8), dtype=np.int8), np.ones(8, dtype=np.float32), np.ones(rows)
    words, x = np.zeros((rows, 8), dtype=np.uint32), np.ones((rows, 8), dtype=np.float32)
    none = np.empty(0, dtype=np.float32)
    online.encrypt(x, none, 1.0, 0.0, words, 0, 0, 24, threads, np.zeros((rows, 24), np.uint8), scales, scales.copy())
    online.answer(packed(24), weights, words, 0, 0, 24, 16, threads, np.zeros((rows, 16), dtype=np.uint8))
    online.decrypt(packed(16), words, 0, 0, 16, scales, ones, ones, threads, x)
    vectors = _vectors(CpuKernels())
    checked = (packed(16), x, none, 1.0, 0.0, words, 0, 0, 16, scales, ones, ones, vectors.block, vectors.shape, 0, rows)
    call = checking.decrypt_checked if threads == 1 else checking.decrypt_checked_together
    call(*checked, x.copy(), np.empty((rows, 1)))
    packing.pack(words, 8, threads, np.zeros((rows, 8), dtype=np.uint8))
    packing.unpack(packed(8), 8, threads, words)
    product.matmul(weights, words, threads, words.copy())


def _vectors(kernels: CpuKernels) -> checking.BlockVectors:
    signs, sums = np.ones((1, 8), dtype=np.int8), np.ones((1, 1, 8), dtype=np.int16)
    vectors = kernels.load_vectors(np.array([0, 8], dtype=np.int32), signs, sums, np.ones((1, 1)))
    assert isinstance(vectors, checking.BlockVectors)
    return vectors


class _Words:
    """Stands for secret randomness where nothing is secret: a server warms its kernels up too."""

    def words16(self, count: int) -> NDArray[np.uint16]:
        return np.zeros(count, dtype=np.uint16)

    def words64(self, count: int) -> NDArray[np.uint64]:
        return np.zeros(count, dtype=np.uint64)
