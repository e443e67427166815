"""The CPU kernels' first use on a machine: Numba compiles each once, a minute of one core in all, and caches it on disk.

Other rooms have kernels of their own: a part is the name of a module with ``SOURCES``, their files, and ``steps``, calls
that together compile them. This module is a part.

Where there are more cores, further processes take part: ``python -m veil.kernels.warm FOLDER``. Each takes steps that nobody
has taken, by making a file of the step's number in the folder, and what one compiled the others read from the disk.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veil.kernels.cpu import checking, kept, local_rows, online, packing, product, row_test, sign_sums
from veil.kernels.cpu.backend import CpuKernels
from veil.kernels.cpu.threads import all_threads
from veil.kernels.interface import Rows, Scaling
from veil.kernels.ring import Ring, ring_of
from veil.params import Params
from veil.progress import Progress

STAGE = "compiling the CPU kernels, once on this machine"
_MOST = 4
"""Processes that compile together; more would wait for the longest kernels."""
_ROWS = 32
_NONE = np.zeros(0)
OWN = "veil.kernels.warm"
"""This part."""
SOURCES = tuple(sorted(Path(kept.__file__).parent.glob("*.py")))
_log = logging.getLogger("veil")


def warm_up(progress: Progress | None = None, parts: Sequence[str] = (OWN,)) -> None:
    """Compile every kernel of some parts, in several processes, where that was not done before on this machine.

    Other programs that begin at the same time wait for the first. ``progress`` is told how far it is.
    """
    if not _missing(parts):
        return
    if progress:
        progress(STAGE, 0, 0)
    with kept.alone():
        missing = _missing(parts)
        if not missing:
            return
        CpuKernels().pack(np.zeros((1, 8), dtype=np.uint32), 8)
        if packing.compiled_now():
            _log.info("%s (up to a minute)", STAGE)
        _compile_all(missing, progress or (lambda *_: None))
        for part in missing:
            kept.note_all_there(part, _sources(part))


def _missing(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if not kept.all_there(part, _sources(part))]


def _sources(part: str) -> Sequence[Path]:
    found: Sequence[Path] = importlib.import_module(part).SOURCES
    return found


def _steps_of(parts: Sequence[str]) -> list[Callable[[], object]]:
    return [step for part in parts for step in importlib.import_module(part).steps()]


def steps() -> Iterator[Callable[[], object]]:
    """The steps of this part."""
    return every_kernel(ring_of(Params.insecure_tiny()))


def _compile_all(parts: Sequence[str], progress: Progress) -> None:
    """Compile what the parts' steps call: with others, then what they left out."""
    calls = _steps_of(parts)
    processes = min(all_threads(), _MOST, len(calls)) if kept.can_share() and sys.executable else 1
    with tempfile.TemporaryDirectory() as taken, _others(Path(taken), processes, parts) as others:
        for _ in _share(calls, Path(taken), 0):
            progress(STAGE, len(os.listdir(taken)) - 1, len(calls) + 1)
        for other in others:
            other.wait()
    for call in calls:  # those of others are on disk
        call()
    progress(STAGE, len(calls) + 1, len(calls) + 1)


@contextmanager
def _others(taken: Path, processes: int, parts: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """All of the processes but this one, each taking steps; they have ended when the block has."""
    nothing, others = subprocess.DEVNULL, []
    try:
        for place in range(1, processes):
            command = [sys.executable, "-m", "veil.kernels.warm", str(taken), str(place / processes), *parts]
            others.append(subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing))
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def _share(steps: list[Callable[[], object]], taken: Path, begin: float) -> Iterator[None]:
    """Run the steps that no process has taken, from this part of them on and round; a yield before each.

    Processes that begin far apart compile few of the functions that neighbours share twice.
    """
    first = int(begin * len(steps))
    for number in [*range(first, len(steps)), *range(first)]:
        try:
            (taken / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield
        steps[number]()


def every_kernel(ring: Ring) -> Iterator[Callable[[], object]]:
    """Calls that together compile every kernel for the array types of real use (bytes off the wire are read-only)."""
    kernels, rng = CpuKernels(), _Words()
    weights = np.ones((8, 8), dtype=np.int8)
    a = np.zeros((1, ring.k, ring.m), dtype=np.uint32)
    public = np.zeros((ring.terms, 2, ring.N), dtype=np.uint32)
    secrets, z = np.zeros((1, ring.k, ring.m), dtype=np.int8), np.zeros((1, ring.N), dtype=np.int8)
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
    yield lambda: kernels.encrypt_batches(public, z, secrets, kernels.errors(rng, 3.2).draw(1, ring.terms, ring.N), ring)
    yield lambda: kernels.pads(inner, secrets, [kernels.errors(rng, 3.2).draw(ring.T, ring.r)], ring)
    yield lambda: kernels.shares(kernels.load_public(words[:, : ring.w].copy(), ring), z, ring.w, ring)
    for count, threads in ((_ROWS, 1), (2 * _ROWS, 2), (1, 2)):
        yield from _steps(count, threads)
    yield lambda: kernels.decrypt(received[:, :16], scaling, rows, 0, 16, tau)
    yield lambda: kernels.decrypt_checked(
        received[:, :16], _sent(1), scaling, rows, 0, 16, tau, _vectors(kernels), np.empty((1, 1))
    )
    yield lambda: kernels.encrypt_checked(x, scaling, rows, 0, 24)
    yield lambda: row_test.add(_NONE, _NONE, np.zeros(0, np.int64), _NONE[None], 0.0, 0.0, _NONE[None], _NONE)
    yield lambda: kernels.answer(received, weights, rows, 0, (24, 16))
    yield lambda: list(kernels.prefetch(weights))
    yield from _local_steps()


def _local_steps() -> Iterator[Callable[[], object]]:
    """The steps of a token's own layers."""
    x, none, out = np.ones(8, dtype=np.float32), np.empty(0, dtype=np.float32), np.empty(8, dtype=np.float32)
    rows = np.zeros((1, 2, 8), dtype=np.float32)
    yield lambda: local_rows.norm_row(x, x, none, 0.0, 1e-5, False, out)
    yield lambda: local_rows.factor_row(x, x, x, 1e-5, False)
    yield lambda: local_rows.activate_row(x, local_rows.SILU, False, out)
    yield lambda: local_rows.attend_row(np.ones(24, dtype=np.float32), x, x, rows, rows.copy(), 1, 1.0, out)


def _steps(rows: int, threads: int) -> Iterator[Callable[[], object]]:
    """The steps of some rows with these threads."""

    def packed(size: int) -> NDArray[np.uint8]:
        data = np.zeros((rows, size), dtype=np.uint8)
        data.flags.writeable = False
        return data

    weights, ones, scales = np.ones((8, 8), dtype=np.int8), np.ones(8, dtype=np.float32), np.ones(rows)
    words, x = np.zeros((rows, 8), dtype=np.uint32), np.ones((rows, 8), dtype=np.float32)
    none, out = np.empty(0, dtype=np.float32), np.zeros((rows, 24), dtype=np.uint8)
    vectors = _vectors(CpuKernels())
    sent = _sent(rows)
    checked = (packed(16), sent, words, 0, 0, 16, scales, ones, ones, vectors.block, 0, rows)
    check = checking.decrypt_checked if threads == 1 else checking.decrypt_checked_together
    yield lambda: online.answer(packed(24), weights, words, 0, 0, 24, 16, threads, out[:, :16].copy())
    yield lambda: online.encrypt(x, none, 1.0, 0.0, words, 0, 0, 24, threads, out, scales, scales.copy(), sent)
    yield lambda: check(*checked, x.copy(), np.empty((rows, 1)))
    yield lambda: online.decrypt(packed(16), words, 0, 0, 16, scales, ones, ones, threads, x)
    yield lambda: packing.pack(words, 8, threads, out[:, :8].copy())
    yield lambda: packing.unpack(packed(8), 8, threads, words)
    yield lambda: product.matmul(weights, words, threads, words.copy())


def _sent(rows: int) -> NDArray[np.int16]:
    return np.zeros((rows, sign_sums.halves_of(8)), dtype=np.int16)


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


if __name__ == "__main__":
    with contextlib.suppress(FileNotFoundError):  # the folder is gone: whoever asked has ended
        for _ in _share(_steps_of(sys.argv[3:]), Path(sys.argv[1]), float(sys.argv[2])):
            pass
