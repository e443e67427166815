"""Which kernels run: chosen once, by name, and never changed behind the caller's back."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from types import ModuleType

from veil.errors import DeviceUnavailable

DEVICES = ("auto", "cpu", "cuda", "reference")


def kernels_for(device: str) -> ModuleType:
    """The kernel module for ``cpu``, ``cuda``, ``reference`` or ``auto`` (CUDA where it can be used, else the CPU).

    Raises `DeviceUnavailable` when CUDA is asked for and is not there, or Triton is not, `ValueError` for another name.
    """
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
    if device in ("auto", "cuda") and _has_cuda():
        if importlib.util.find_spec("triton") is not None:
            from veil.kernels import cuda

            return cuda
        if device == "cuda":
            raise DeviceUnavailable("device='cuda' needs Triton: pip install 'veil-llm[cuda]'; or use device='cpu'")
    if device == "cuda":
        raise DeviceUnavailable("device='cuda' was asked for, but torch sees no CUDA device; use device='cpu'")
    if device == "reference":
        from veil.kernels import reference

        return reference
    from veil.kernels import cpu

    return cpu


def _has_cuda() -> bool:
    """Whether torch sees a device; torch is not loaded where there is no NVIDIA driver at all."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
