"""Which kernels run: chosen once, by name, and never changed behind the caller's back."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import lru_cache

from veil.errors import DeviceUnavailable
from veil.kernels.interface import Kernels

DEVICES = ("auto", "cpu", "cuda", "reference")


def kernels_for(device: object) -> Kernels:
    """The kernels of ``cpu``, ``cuda`` (or a torch.device), ``reference``, or ``auto``: CUDA where it can be used.

    Raises `DeviceUnavailable` when CUDA is asked for and is not there, or Triton is not, `ValueError` for another name.
    """
    device = str(device)  # a torch.device as well
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
    if device in ("auto", "cuda") and _has_cuda():
        if importlib.util.find_spec("triton") is not None:
            return _made("cuda")
        if device == "cuda":
            raise DeviceUnavailable("device='cuda' needs Triton: pip install 'veil-llm[cuda]'; or use device='cpu'")
    if device == "cuda":
        raise DeviceUnavailable("device='cuda' was asked for, but torch sees no CUDA device; use device='cpu'")
    return _made("reference" if device == "reference" else "cpu")


@lru_cache(maxsize=3)
def _made(name: str) -> Kernels:
    if name == "cuda":
        from veil.kernels.cuda.backend import CudaKernels

        return CudaKernels()
    if name == "reference":
        from veil.kernels.reference_kernels import ReferenceKernels

        return ReferenceKernels()
    from veil.kernels.cpu import kept
    from veil.kernels.cpu.backend import CpuKernels

    kept.mend()
    return CpuKernels()


def _has_cuda() -> bool:
    """Whether torch sees a device; torch is not loaded where there is no NVIDIA driver at all."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
