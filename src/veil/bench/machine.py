"""The machine: its processor, how fast it reads memory, how fast it multiplies and adds, and how much memory was used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, prange, types

import veil
from veil.bench.record import Machine
from veil.kernels.cpu.parallel import parallel
from veil.kernels.cpu.vector import lanes, vector_code, vector_words
from veil.priority import cores

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CHAINS = 12
_PARTS = 64
READ_BYTES = 1 << 30


def describe(device: str = "cpu") -> Machine:
    """The machine, with the read bandwidth and multiply-add peak of what computes (``cpu`` or ``cuda``) measured now."""
    cuda = device == "cuda"
    return Machine(
        processor=_processor(),
        cores=cores(),
        system=f"{platform.system()} {platform.machine()}",
        memory_bytes=_memory_bytes(),
        read_bytes_per_s=gpu_bandwidth() if cuda else read_bandwidth(),
        multiply_adds_per_s=None if cuda else multiply_add_peak(),
        accelerator=_gpu() if cuda else None,
    )


def name() -> str:
    """Processor, cores and Python in a line, without anything that names the host."""
    return f"{_processor()}, {cores()} cores, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Versions of Python, veil and what computes."""
    found = {"python": platform.python_version(), "veil": veil.__version__}
    for name in ("numpy", "numba", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the source that runs, with ``+`` if files of the source differ from it; ``unknown`` outside of git."""
    here = Path(veil.__file__).parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def high_water_bytes() -> int:
    """The most memory that this process has held so far."""
    if resource is None:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_high_water() -> bool:
    """Forget the memory high-water, where the system can; whether `resident_peak_bytes` starts anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_peak_bytes() -> int:
    """The most memory that this process has held since `reset_high_water`."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return high_water_bytes()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def better(first: Machine, second: Machine) -> Machine:
    """Two descriptions of one machine in one: neighbours slow a machine down at times, so the higher figures are its own."""
    adds = [machine.multiply_adds_per_s for machine in (first, second) if machine.multiply_adds_per_s is not None]
    return replace(
        first,
        read_bytes_per_s=max(first.read_bytes_per_s, second.read_bytes_per_s),
        multiply_adds_per_s=max(adds, default=None),
    )


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory: the best of eight passes over a gibibyte."""
    return ReadProbe(READ_BYTES).bytes_per_s(8)


class ReadProbe:
    """Reads the same memory again and again: what the machine gives at this moment, which neighbours change."""

    def __init__(self, nbytes: int) -> None:
        self._data = np.ones(nbytes // 8, dtype=np.uint64)
        read_all(self._data, _PARTS)

    def bytes_per_s(self, passes: int = 3) -> float:
        """Bytes a second, the best of a few passes."""
        return self._data.nbytes / best_of(passes, lambda: read_all(self._data, _PARTS))


def gpu_bandwidth() -> float:
    """Bytes a second that the GPU reads and writes in a copy of a gibibyte: the best of five."""
    import torch

    source = torch.zeros(READ_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    copy()
    return 2 * READ_BYTES / best_of(5, copy)


def multiply_add_peak() -> float:
    """32-bit products added into 64-bit sums a second by all cores, in registers: the best of five.

    Twelve independent vectors of sums a core, so that neither latency nor memory holds the processor up.
    """
    steps, parts = 1 << 16, _PARTS
    multiply_adds(parts, 16)
    return parts * steps * sum_lanes() * CHAINS / best_of(5, lambda: multiply_adds(parts, steps))


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the quickest of some calls."""
    return min(seconds(work) for _ in range(times))


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


@parallel()
def read_all(data, parts):  # type: ignore[no-untyped-def]
    total = np.zeros(parts, np.uint64)
    size = data.size // parts
    for part in prange(parts):
        middle = part * size + size // 2
        total[part] = _mix(data[part * size : middle], data[middle : (part + 1) * size])
    return total


@njit(cache=True)
def _mix(first, second):  # type: ignore[no-untyped-def]
    """Reads two streams at once, a little quicker than one."""
    total = np.uint64(0)
    for i in range(first.size):
        total ^= first[i] ^ second[i]
    return total


@njit(cache=True)
def sum_lanes():  # type: ignore[no-untyped-def]
    """64-bit sums in a vector of this machine."""
    return lanes() // 2


@parallel()
def multiply_adds(parts, steps):  # type: ignore[no-untyped-def]
    total = np.zeros(parts, np.uint64)
    for part in prange(parts):
        total[part] = _burst(np.uint64(part), steps)
    return total


@vector_code
def _burst(context, start, steps):  # type: ignore[no-untyped-def]
    """``steps`` times, in each chain, ``sum += low32(x)·low32(sum)`` in every lane: what no loop of Numba gives."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        first, count = arguments
        word, place = ir.IntType(64), ir.IntType(32)
        width = vector_words(context) // 2
        vector = ir.VectorType(word, width)

        def all_lanes(value: int) -> ir.Constant:
            return ir.Constant(vector, [value] * width)

        start = all_lanes(0)
        for lane in range(width):
            start = builder.insert_element(start, builder.add(first, word(lane)), place(lane))
        before = builder.block
        loop, after = (builder.function.append_basic_block(name) for name in ("burst", "burst.end"))
        builder.branch(loop)
        builder.position_at_end(loop)
        step, x, *sums = (builder.phi(kind) for kind in (word, *[vector] * (1 + CHAINS)))
        low = builder.and_(x, all_lanes(0xFFFFFFFF))
        grown = [builder.add(s, builder.mul(low, builder.and_(s, all_lanes(0xFFFFFFFF)))) for s in sums]
        following = [builder.add(step, word(1)), builder.add(x, all_lanes(1)), *grown]
        for phi, initial, value in zip([step, x, *sums], [word(0), *[start] * (1 + CHAINS)], following, strict=True):
            phi.add_incoming(initial, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], count), loop, after)
        builder.position_at_end(after)
        result = word(0)
        for total in grown:
            for lane in range(width):
                result = builder.xor(result, builder.extract_element(total, place(lane)))
        return result

    return types.uint64(types.uint64, types.int64), generate
