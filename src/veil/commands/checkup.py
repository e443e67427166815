"""The single checks of `veil doctor`: each gives a state, what was found, and a remedy where there is one."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from veil import __version__
from veil.cache import cache_folder, data_folder
from veil.commands.terminal import EXTRAS
from veil.errors import ServerUnreachable
from veil.priority import cores

State = str
Check = Callable[[], tuple[State, str, str]]

_LEAST_DISK = 5e9
"""Bytes: what a compiled SmolLM2 and its hint take, twice."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: ``state`` is ``ok``, ``note`` or ``problem``."""

    name: str
    state: State
    found: str
    remedy: str


def checkups(server: str | None = None) -> list[tuple[str, Check]]:
    """All checks by name, quick ones first."""
    found: list[tuple[str, Check]] = [
        ("versions", _versions),
        ("processor", _processor),
        ("PyTorch", _torch),
        ("extras", _extras),
        ("cache", lambda: _folder(cache_folder(), "VEIL_CACHE_DIR")),
        ("data", lambda: _folder(data_folder(), "VEIL_DATA_DIR")),
        ("disk", _disk),
        ("threads", _threads),
        ("kernels", _kernels),
        ("gpu", _gpu),
    ]
    return found + ([("server", lambda: _server(server))] if server is not None else [])


def _versions() -> tuple[State, str, str]:
    found = [f"veil {__version__}", f"Python {platform.python_version()}"]
    missing = []
    for name in ("torch", "transformers", "numba", "numpy", "grpcio"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return "problem", ", ".join(found), f"pip install {' '.join(missing)}"
    return "ok", ", ".join(found), ""


def _processor() -> tuple[State, str, str]:
    text = f"{platform.system()} {platform.machine()}, {cores()} cores"
    if platform.machine().lower() not in ("x86_64", "amd64", "arm64", "aarch64"):
        return "note", text, "kernels were tried on x86-64 and on ARM64 only"
    return "ok", text, ""


def _torch() -> tuple[State, str, str]:
    import torch

    built = torch.version.cuda or torch.version.hip
    if built and not torch.cuda.is_available():
        remedy = "it works; PyTorch's build for the CPU takes a tenth of the disk (docs/start.md)"
        return "note", f"{torch.__version__}, built for a GPU (CUDA {built}) that is not here", remedy
    return "ok", f"{torch.__version__}, {'for GPUs' if built else 'for the CPU'}, {torch.get_num_threads()} threads", ""


def _extras() -> tuple[State, str, str]:
    there: list[str] = []
    absent: list[str] = []
    for extra in ("server", "gateway", "bench"):  # `_gpu` tells of the one for a GPU
        whole = all(importlib.util.find_spec(module) is not None for module in EXTRAS[extra])
        (there if whole else absent).append(extra)
    remedy = f"pip install 'veil-llm[{','.join(absent)}]' if you want them" if absent else ""
    return "ok", f"installed: {', '.join(there) or 'none'}; not installed: {', '.join(absent) or 'none'}", remedy


def _folder(path: Path, variable: str) -> tuple[State, str, str]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"veil")
    except OSError as error:
        return (
            "problem",
            f"{path} cannot be written: {error.strerror}",
            f"make it writable, or set {variable} to another folder",
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return "ok", f"{path}, {size / 1e9:.1f} GB", ""


def _disk() -> tuple[State, str, str]:
    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < _LEAST_DISK:
        return (
            "note",
            f"{free / 1e9:.1f} GB free",
            "set VEIL_CACHE_DIR to where there is more: a small model takes 2 GB",
        )
    return "ok", f"{free / 1e9:.0f} GB free", ""


def _threads() -> tuple[State, str, str]:
    from veil.kernels.cpu import parallel
    from veil.kernels.cpu.threads import all_threads

    layer = parallel.layer()
    if layer == "workqueue" and all_threads() > 1:
        return "note", f"{layer}, {all_threads()} threads: kernels take turns", parallel.remedy()
    return "ok", f"{layer}, {all_threads()} threads", ""


def _kernels() -> tuple[State, str, str]:
    """Three rows through the online steps of both halves with the CPU kernels and with the reference."""
    import numpy as np

    from veil.kernels.backend import kernels_for
    from veil.kernels.interface import Rows, Scaling

    draw, begun = np.random.default_rng(0), time.perf_counter()
    x = draw.standard_normal((3, 99)).astype(np.float32)
    weights = draw.integers(-127, 128, (70, 99), dtype=np.int8)
    scale = np.full(70, 0.01, dtype=np.float32)
    words = draw.integers(0, 1 << 32, (3, 99), dtype=np.uint32)
    results = []
    for name in ("cpu", "reference"):
        kernels = kernels_for(name)
        rows, scaling = [Rows(kernels.asarray(words), 0, 3)], Scaling(None, scale, scale, 1e8, 0.0)
        sent, scales = kernels.encrypt(kernels.asarray(x), scaling, rows, 0, 24)
        answered = kernels.answer(sent, kernels.load_weights([weights])[0], rows, 0, (24, 16))
        read = kernels.decrypt(answered, scaling, rows, 0, 16, scales)
        results.append((kernels.to_numpy(answered), kernels.to_numpy(read)))
    took = time.perf_counter() - begun
    (fast, read), (expected, expected_read) = results
    if not (np.array_equal(fast, expected) and np.allclose(read, expected_read)):
        return "problem", "the CPU kernels give other results than the reference", "report it, with the processor's name"
    if took > 5:
        return "note", f"equal to the reference; compiled now, {took:.0f} s", "the first use of the others takes a minute"
    return "ok", "equal to the reference", ""


def _gpu() -> tuple[State, str, str]:
    import torch

    if not torch.cuda.is_available():
        return "ok", "none that PyTorch can use; everything runs on the processor", ""
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    if importlib.util.find_spec("triton") is None:
        return "note", f"{names}, without Triton", "pip install 'veil-llm[cuda]' to use it"
    return "ok", names, ""


def _server(target: str) -> tuple[State, str, str]:
    from veil.network.reach import connecting_s

    host, _, port = target.rpartition(":")
    if not host or not port.isdigit():
        return "problem", f"{target!r} is not HOST:PORT", "give it as HOST:PORT"
    try:
        took = connecting_s(target)
    except ServerUnreachable as error:
        found, _, _ = str(error).partition(";")
        return "problem", found, "check address, port and firewall, and that `veil serve` runs there"
    proxies = [name for name in ("http_proxy", "https_proxy", "all_proxy") if os.environ.get(name)]
    note = f"; {', '.join(proxies)} set: used with TLS only" if proxies else ""
    return "ok", f"{target} accepts connections, {1000 * took:.0f} ms a round trip{note}", ""
